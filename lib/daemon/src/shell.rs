//! The frame that both daemons run in: runtime, signals, service manager, status file, HTTP.
//!
//! The daemon's own loops run on the first thread, what serves others on one of its own: a page that takes long or a disk
//! that hangs delays no lease, and a loop that blocks its thread is named by the pages all the same. Invariants: no thread runs that is not confined ([`crate::confine`]); ending, in
//! whatever way, leaves the kernel as it is; a pass that is running is finished before the process ends, within
//! [`END_LIMIT`]; whatever the frame cannot do (write a file, bind an address) hinders no data path.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::confine::confine;
use crate::http::{self, Address, Board, Health, OwnPages, Page, Probe, Routes, Site, Vitals};
use crate::lifecycle::{self, Notice, Signal, Signals};
use crate::liveness::{Condition, Heartbeat, Liveness, Progress};
use crate::log::{Log, Recent};
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::status::TableRows;
use crate::worker::{Busy, Mailbox, Work};

/// Longest wait for the end of a pass when the process ends.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How often the loops are judged, and how often the thread that they share shows that it runs.
const PERIOD: Duration = Duration::from_secs(10);

/// Longest time for which that thread may be blocked.
const BLOCKED: Duration = Duration::from_secs(30);

/// Longest wait for an audit that SIGHUP asked for.
const AUDIT_LIMIT: Duration = Duration::from_secs(60);

/// What one program is to the frame.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Gates that must open before it is ready.
    pub gates: &'static [&'static str],
    /// Its status for a terminal.
    pub render: fn(&Value) -> String,
    /// Its words about its health.
    pub health: fn(Probe, &Health) -> Page,
}

/// Where the frame serves and writes.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folder of run-time files.
    pub run_dir: PathBuf,
    /// Other folders in which the daemon writes files.
    pub written: Vec<PathBuf>,
    /// Addresses for HTTP; the unix socket in the run-time folder is always there.
    pub listeners: Vec<(Address, Routes)>,
}

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A question to a thread, which waits for a limited time.
type Question<T> = Box<dyn Fn(Duration) -> Answer<T> + Send>;

/// The thread that can be asked now.
struct Attached {
    tables: Question<Result<Vec<TableRows>, Busy>>,
    audit: Question<bool>,
    ended: Question<bool>,
}

/// What the frame offers the daemon in it; clones are the same frame.
#[derive(Clone)]
pub struct Shell {
    /// Gates of readiness.
    pub readiness: Readiness,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Where the status is put up.
    pub board: Board,
    /// Whether every loop makes progress.
    pub liveness: Liveness,
    /// What the program says of itself.
    pub vitals: Arc<Mutex<Vitals>>,
    /// Pages that only this program has.
    pub own_pages: OwnPages,
    /// The last lines of the log.
    pub recent: Recent,
    listeners: Arc<watch::Sender<Vec<(Address, Routes)>>>,
    attached: Arc<Mutex<Option<Attached>>>,
}

impl Shell {
    /// A frame that serves nothing yet.
    #[must_use]
    pub fn new(program: &Program) -> Self {
        let readiness = Readiness::new(program.gates.iter().copied());
        let (metrics, liveness) = (Metrics::new(program.name, program.version, readiness.clone()), Liveness::default());
        metrics.judge(liveness.clone());
        Self {
            metrics: Arc::new(metrics),
            readiness,
            board: Board::new(program.render),
            liveness,
            vitals: Arc::default(),
            own_pages: OwnPages::default(),
            recent: Recent::default(),
            listeners: Arc::default(),
            attached: Arc::default(),
        }
    }

    /// Makes the thread behind `mailbox` the one that is asked for rows and audits.
    pub fn attach<W: Work>(&self, mailbox: &Mailbox<W>) {
        let (tables, audit, ended) = (mailbox.clone(), mailbox.clone(), mailbox.clone());
        let attached = Attached {
            tables: Box::new(move |limit| {
                let mailbox = tables.clone();
                Box::pin(async move { mailbox.tables(limit).await })
            }),
            audit: Box::new(move |limit| {
                let mailbox = audit.clone();
                Box::pin(async move { mailbox.audit(limit).await })
            }),
            ended: Box::new(move |limit| {
                let mailbox = ended.clone();
                Box::pin(async move { mailbox.ended(limit).await })
            }),
        };
        *self.attached.lock().unwrap_or_else(PoisonError::into_inner) = Some(attached);
    }

    /// Serves HTTP where `places` says from now on, and nowhere else; the folder of run-time files is that of the start.
    pub fn listen(&self, places: &Places) {
        let socket = (Address::Unix(places.run_dir.join(http::SOCKET)), Routes::All);
        let wanted: Vec<_> = places.listeners.iter().cloned().chain([socket]).collect();
        self.listeners.send_if_modified(|listeners| {
            let differ = *listeners != wanted;
            *listeners = wanted;
            differ
        });
    }

    /// Reports readiness to the service manager once the last gate opens with `gate`. Returns whether it did.
    pub fn open_gate(&self, gate: &str) -> bool {
        let ready = self.readiness.open(gate);
        if ready {
            lifecycle::notify(Notice::Ready);
        }
        ready
    }

    /// Asks the attached thread, if there is one.
    fn ask<T>(&self, question: impl FnOnce(&Attached) -> Answer<T>) -> Option<Answer<T>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(question)
    }

    async fn reload(&self) {
        tracing::info!("everything is compared with the kernel now");
        // What has not begun its work has nothing to be ready with again: systemd would begin what waits for it.
        let was_ready = self.readiness.is_ready();
        if was_ready {
            lifecycle::notify(Notice::Reloading);
        }
        if let Some(audit) = self.ask(|attached| (attached.audit)(AUDIT_LIMIT))
            && !audit.await
        {
            tracing::warn!("comparing everything takes longer than {} s", AUDIT_LIMIT.as_secs());
        }
        if was_ready {
            lifecycle::notify(Notice::Ready);
        }
    }

    fn site(&self, program: &Program) -> Site {
        let asked = self.clone();
        Site {
            readiness: self.readiness.clone(),
            liveness: self.liveness.clone(),
            metrics: Arc::clone(&self.metrics),
            board: self.board.clone(),
            tables: Box::new(move |limit| {
                asked.ask(|attached| (attached.tables)(limit)).unwrap_or_else(|| Box::pin(async { Ok(Vec::new()) }))
            }),
            health: program.health,
            vitals: Arc::clone(&self.vitals),
            own: self.own_pages.clone(),
            recent: self.recent.clone(),
        }
    }

    /// Serves whoever asks and judges the loops, on a thread of its own, until the process ends. Returns whether that thread
    /// makes progress.
    fn serve(&self, program: &Program, places: &Places) -> io::Result<Progress> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shell, site, places) = (self.clone(), Arc::new(self.site(program)), places.clone());
        shell.listen(&places);
        let listeners = shell.listeners.subscribe();
        let heartbeat = Heartbeat::new(BLOCKED);
        let progress = heartbeat.progress();
        let serve = move || {
            runtime.block_on(async move {
                tokio::spawn(http::serve_wherever(listeners, site));
                let (board, liveness) = (shell.board.clone(), shell.liveness.clone());
                let writing = async move { board.write_to(&places.run_dir, liveness).await };
                tokio::join!(writing, judge(shell.readiness.clone(), shell.liveness.clone(), heartbeat))
            });
        };
        std::thread::Builder::new().name("frame".to_owned()).spawn(serve)?;
        Ok(progress)
    }
}

/// Judges the loops: one that makes no progress is logged, and neither feeds the watchdog nor gets more time for a start,
/// which otherwise takes as long as the sources take.
async fn judge(readiness: Readiness, liveness: Liveness, heartbeat: Heartbeat) {
    let watchdog = lifecycle::watchdog_period();
    let period = watchdog.unwrap_or(PERIOD).min(PERIOD);
    let mut reported = Vec::new();
    loop {
        let stuck = liveness.stuck();
        if stuck.is_empty() {
            if watchdog.is_some() {
                lifecycle::notify(Notice::Watchdog);
            }
            if !readiness.is_ready() {
                lifecycle::notify(Notice::Starting);
            }
        }
        let names: Vec<String> = stuck.iter().map(|stuck| stuck.name.clone()).collect();
        for stuck in stuck.iter().filter(|stuck| !reported.contains(&stuck.name)) {
            tracing::error!("{stuck}; the data path stays as it is");
        }
        reported = names;
        heartbeat.back_within(period);
        tokio::time::sleep(period).await;
    }
}

/// Shows that the thread of the daemon's loops runs, and logs when the one that judges them does not: nobody else would.
async fn beat(heartbeat: Heartbeat, judge: Progress) {
    let mut reported = false;
    loop {
        heartbeat.back_within(PERIOD);
        tokio::time::sleep(PERIOD).await;
        let stuck = judge.at(Instant::now()) != Condition::Alive;
        if stuck && !reported {
            tracing::error!(
                "the thread of pages, status and watchdog makes no progress: is the disk of the run-time files in order? \
                 The data path stays as it is"
            );
        }
        reported = stuck;
    }
}

/// Runs `daemon` in the frame until a signal asks to end, or it ends by itself.
///
/// # Errors
/// What `daemon` ends with; also when the system refuses the runtime or the signals.
pub fn run<F, E>(program: &Program, places: &Places, log: Log, daemon: impl FnOnce(Shell) -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
    E: From<io::Error>,
{
    kernel::heap::share();
    lifecycle::exit_on_panic();
    // No thread runs yet.
    confine(&[std::slice::from_ref(&places.run_dir), &places.written].concat()).log();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let signals = Signals::open()?;
        let shell = Shell { recent: log.recent(), ..Shell::new(program) };
        let judge = shell.serve(program, places)?;
        tokio::spawn(beat(shell.liveness.heartbeat("main thread", BLOCKED), judge));
        tracing::info!(version = program.version, "{} starts", program.name);
        let ended = tokio::select! {
            ended = daemon(shell.clone()) => ended,
            signal = follow(signals, log, &shell) => {
                tracing::info!(signal, "ending; the data path stays as it is");
                lifecycle::notify(Notice::Stopping);
                Ok(())
            }
        };
        // The daemon is dropped by now, and with it the thread was asked to end.
        if let Some(end) = shell.ask(|attached| (attached.ended)(END_LIMIT))
            && !end.await
        {
            tracing::warn!("the last pass takes longer than {} s and is left", END_LIMIT.as_secs());
        }
        ended
    })
}

/// Follows the signals until one asks to end; its name.
async fn follow(mut signals: Signals, log: Log, shell: &Shell) -> &'static str {
    let (reload, reloading) = (Arc::new(Notify::new()), shell.clone());
    // However many are asked for while everything is compared, one comparison follows.
    let asked = Arc::clone(&reload);
    tokio::spawn(async move {
        loop {
            asked.notified().await;
            reloading.reload().await;
        }
    });
    loop {
        match signals.next().await {
            Signal::End(name) => {
                // What runs here is dropped now.
                shell.liveness.end();
                return name;
            }
            Signal::Reload => reload.notify_one(),
            Signal::Raise => log.raise(),
            Signal::Restore => log.restore(),
        }
    }
}

/// A seed that differs from node to node and from start to start, also in a container where every process has the same
/// id; for spreading load, never for secrets.
#[must_use]
pub fn seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The standard library asks the system for its keys.
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_differ() {
        assert_ne!(seed(), seed());
    }
}
