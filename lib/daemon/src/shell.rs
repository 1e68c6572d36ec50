//! The frame that both daemons run in: runtime, signals, service manager, status file, HTTP.
//!
//! Invariants: ending, in whatever way, leaves the kernel as it is; a pass that is running is finished before the process
//! ends, within [`END_LIMIT`]; whatever the frame cannot do (write a file, bind an address) hinders no data path.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::http::{self, Address, Board, Health, Page, Probe, Routes, Site};
use crate::lifecycle::{self, EXTENSION, Notice, Signal, Signals};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::status::TableRows;
use crate::worker::{Busy, Liveness, Mailbox, Work};

/// Longest wait for the end of a pass when the process ends.
const END_LIMIT: Duration = Duration::from_secs(5);

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
    /// Pages that only it has.
    pub others: &'static [(&'static str, &'static str)],
}

/// Where the frame serves and writes.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folder of run-time files.
    pub run_dir: PathBuf,
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
    /// Whether the kernel thread makes progress; mailboxes are made with it.
    pub liveness: Liveness,
    attached: Arc<Mutex<Option<Attached>>>,
}

impl Shell {
    /// A frame that serves nothing yet.
    #[must_use]
    pub fn new(program: &Program) -> Self {
        let readiness = Readiness::new(program.gates.iter().copied());
        Self {
            metrics: Arc::new(Metrics::new(program.name, program.version, readiness.clone())),
            readiness,
            board: Board::new(program.render),
            liveness: Liveness::default(),
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
        lifecycle::notify(Notice::Reloading);
        if let Some(audit) = self.ask(|attached| (attached.audit)(AUDIT_LIMIT))
            && !audit.await
        {
            tracing::warn!("comparing everything takes longer than {} s", AUDIT_LIMIT.as_secs());
        }
        lifecycle::notify(Notice::Ready);
    }

    fn serve(&self, program: &Program, places: &Places) {
        let asked = self.clone();
        let site = Arc::new(Site {
            readiness: self.readiness.clone(),
            liveness: self.liveness.clone(),
            metrics: Arc::clone(&self.metrics),
            board: self.board.clone(),
            tables: Box::new(move |limit| {
                asked.ask(|attached| (attached.tables)(limit)).unwrap_or_else(|| Box::pin(async { Ok(Vec::new()) }))
            }),
            health: program.health,
            others: program.others,
        });
        let socket = (Address::Unix(places.run_dir.join(http::SOCKET)), Routes::All);
        for (address, routes) in places.listeners.iter().cloned().chain([socket]) {
            tokio::spawn(http::serve(address, routes, Arc::clone(&site)));
        }
        let (board, folder, liveness) = (self.board.clone(), places.run_dir.clone(), self.liveness.clone());
        tokio::spawn(async move { board.write_to(&folder, liveness).await });
        tokio::spawn(ask_for_time(self.readiness.clone(), self.liveness.clone()));
        if let Some(period) = lifecycle::watchdog_period() {
            tokio::spawn(feed_watchdog(period, self.liveness.clone()));
        }
    }
}

/// A start takes as long as the sources take; only one that makes no progress runs into the service manager's limit.
async fn ask_for_time(readiness: Readiness, liveness: Liveness) {
    while !readiness.is_ready() {
        if !liveness.is_stuck() {
            lifecycle::notify(Notice::Starting);
        }
        tokio::time::sleep(EXTENSION / 3).await;
    }
}

async fn feed_watchdog(period: Duration, liveness: Liveness) {
    loop {
        if !liveness.is_stuck() {
            lifecycle::notify(Notice::Watchdog);
        }
        tokio::time::sleep(period).await;
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
    lifecycle::exit_on_panic();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let signals = Signals::open()?;
        let shell = Shell::new(program);
        shell.serve(program, places);
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
async fn follow(mut signals: Signals, mut log: Log, shell: &Shell) -> &'static str {
    loop {
        match signals.next().await {
            Signal::End(name) => return name,
            Signal::Reload => {
                let shell = shell.clone();
                tokio::spawn(async move { shell.reload().await });
            }
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
