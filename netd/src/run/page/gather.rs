//! `Gatherer`: the facts of the page, kept for a moment for all who ask.
//!
//! Invariants: the daemon is asked for its leases only when its status has changed since it said them, files are read only when their folder has, and
//! ipvs-proxy is asked no more often than once in [`FRESH`] for each search; what another program sends is bounded in size and time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daemon::http::{Board, ask_some, encoded};
use daemon::log::{self, Recent, RecentEntry};
use daemon::shell::Shell;
use daemon::status::{State, Stored};
use serde::Deserialize as _;
use tokio::sync::{Mutex, watch};

use crate::command::page::Wanted;
use crate::doctor::kept;
use crate::format::status::Probe;
use crate::page::facts::{Change, Kind, Pod, Proxy, Reported, Services, Snapshot};
use crate::run::VERSION;
use crate::trace::pods;

/// How long facts are good enough for the next who asks.
const FRESH: Duration = Duration::from_secs(1);

/// Longest wait for ipvs-proxy, and the longest answer of it.
const PROXY_LIMIT: Duration = Duration::from_secs(2);
const PROXY_BYTES: u64 = 2 * 1024 * 1024;

/// Searches whose Services are kept.
const SEARCHES: usize = 16;

/// See the module's text.
pub(super) struct Gatherer {
    board: Board,
    recent: Recent,
    run_dir: PathBuf,
    proxy_dir: PathBuf,
    kept: Mutex<Kept>,
}

/// What was gathered last.
#[derive(Default)]
struct Kept {
    at: Option<Instant>,
    /// The number of the status that the leases are of.
    status_number: Option<u64>,
    status: Arc<Reported>,
    files: Files,
    /// What ipvs-proxy has logged.
    proxy_changes: Vec<Change>,
    changes: Arc<Vec<Change>>,
    /// By what was searched for.
    services: BTreeMap<String, (Instant, Arc<Proxy>)>,
}

/// What is read from files, and when their folders had changed last.
#[derive(Clone, Default)]
struct Files {
    pods_changed: Option<Vec<(PathBuf, SystemTime)>>,
    pods: Arc<Vec<Pod>>,
    probes_changed: Option<SystemTime>,
    probes: Arc<BTreeMap<String, Probe>>,
}

impl Gatherer {
    pub(super) fn new(shell: &Shell, wanted: &Wanted) -> Self {
        let (run_dir, proxy_dir) = (wanted.run_dir.clone(), wanted.proxy_dir.clone());
        Self { board: shell.board.clone(), recent: shell.recent.clone(), run_dir, proxy_dir, kept: Mutex::default() }
    }

    /// Changes whenever the status does.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.board.changes()
    }

    /// Everything as it is now, or was less than [`FRESH`] ago, with the Services that `search` finds.
    pub(super) async fn snapshot(&self, search: &str) -> Snapshot {
        let mut kept = self.kept.lock().await;
        if kept.at.is_none_or(|at| at.elapsed() >= FRESH) {
            self.gather(&mut kept).await;
            kept.at = Some(Instant::now());
        }
        if kept.services.get(search).is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            let proxy = self.ask_proxy(search).await;
            kept.services.retain(|_, (at, _)| at.elapsed() < FRESH);
            if kept.services.len() >= SEARCHES {
                kept.services.clear();
            }
            kept.services.insert(search.to_owned(), (Instant::now(), Arc::new(proxy)));
        }
        Snapshot {
            version: VERSION,
            now: now(),
            status: Arc::clone(&kept.status),
            probes: Arc::clone(&kept.files.probes),
            pods: Arc::clone(&kept.files.pods),
            has_records: kept.files.pods_changed.as_ref().is_some_and(|folders| !folders.is_empty()),
            proxy: kept.services.get(search).map(|(_, proxy)| Arc::clone(proxy)).unwrap_or_default(),
            changes: Arc::clone(&kept.changes),
        }
    }

    async fn gather(&self, kept: &mut Kept) {
        let number = *self.board.changes().borrow();
        if kept.status_number != Some(number) {
            let mut status = Reported::deserialize(&self.board.whole().await).unwrap_or_default();
            // A daemon that is busy does not say its leases; those that it said last are better than none until it does.
            kept.status_number = status.leases.is_some().then_some(number);
            status.leases = status.leases.or_else(|| kept.status.leases.clone());
            kept.status = Arc::new(status);
        }
        let (run_dir, proxy_dir, mut files) = (self.run_dir.clone(), self.proxy_dir.clone(), kept.files.clone());
        let read = tokio::task::spawn_blocking(move || {
            files.read(&run_dir);
            (files, changes_of_proxy(&proxy_dir))
        });
        if let Ok((files, changes)) = read.await {
            kept.files = files;
            kept.proxy_changes = changes;
        }
        let own = self.recent.entries().into_iter().map(|entry| change("netd", entry));
        let mut changes: Vec<Change> = own.chain(kept.proxy_changes.iter().cloned()).collect();
        changes.sort_by_key(|change| (change.at, change.program, change.number));
        kept.changes = Arc::new(changes);
    }

    async fn ask_proxy(&self, search: &str) -> Proxy {
        let (folder, page) = (self.proxy_dir.clone(), format!("/services?q={}", encoded(search)));
        let asked = tokio::task::spawn_blocking(move || services(&folder, &page));
        asked.await.unwrap_or_default()
    }
}

impl Files {
    /// Reads what may have changed.
    fn read(&mut self, run_dir: &Path) {
        let changed = pods::changed();
        if self.pods_changed.as_ref() != Some(&changed) {
            let pod = |found: pods::Attachment| Pod {
                name: found.name,
                container: found.container,
                addresses: found.addresses,
            };
            let mut pods: Vec<Pod> = pods::attachments().into_iter().map(pod).collect();
            pods.sort();
            self.pods = Arc::new(pods);
            self.pods_changed = Some(changed);
        }
        let changed = std::fs::metadata(run_dir.join(kept::FILE)).and_then(|meta| meta.modified()).ok();
        if self.probes_changed != changed {
            self.probes = Arc::new(kept::read(run_dir));
            self.probes_changed = changed;
        }
    }
}

/// What ipvs-proxy with this folder of run-time files serves, or why nobody knows.
fn services(folder: &Path, page: &str) -> Proxy {
    let stored = match Stored::read(folder) {
        Ok(stored) => stored,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return absent(format!("ipvs-proxy is not running on this node: {} has no status of it", folder.display()));
        }
        Err(error) => {
            return absent(format!("whether ipvs-proxy runs on this node is not known: {}: {error}", folder.display()));
        }
    };
    let age = stored.age.as_secs() / 10 * 10;
    match stored.state {
        State::Dead => {
            return absent(
                "ipvs-proxy is not running on this node: it has ended; the kernel is as it left it".to_owned(),
            );
        }
        State::Stuck => {
            return absent(format!(
                "ipvs-proxy on this node has made no progress for {age} s: its Services are not known"
            ));
        }
        State::Running => {}
    }
    let answer = ask_some(folder, page, PROXY_LIMIT, PROXY_BYTES).map_err(|error| error.to_string());
    let services = answer.and_then(|text| serde_json::from_str::<Services>(&text).map_err(|error| error.to_string()));
    match services {
        Ok(services) => {
            let behind = stored.status.get("ok").and_then(serde_json::Value::as_bool) == Some(false);
            let problem = behind.then(|| "ipvs-proxy is not in sync: see ipvs-proxy status".to_owned());
            Proxy { problem, services: Some(services) }
        }
        Err(error) => absent(format!("ipvs-proxy runs on this node and does not say what it serves: {error}")),
    }
}

const fn absent(problem: String) -> Proxy {
    Proxy { problem: Some(problem), services: None }
}

/// The last lines of ipvs-proxy's log; none when it does not answer.
fn changes_of_proxy(folder: &Path) -> Vec<Change> {
    let text = ask_some(folder, "/changes?format=json", PROXY_LIMIT, PROXY_BYTES).unwrap_or_default();
    let entries: Vec<RecentEntry> = serde_json::from_str(&text).unwrap_or_default();
    entries.into_iter().take(log::KEPT).map(|entry| change("ipvs-proxy", entry)).collect()
}

fn change(program: &'static str, RecentEntry { number, at, kind, text }: RecentEntry) -> Change {
    let kind = match kind {
        log::Kind::Change => Kind::Change,
        log::Kind::Repair => Kind::Repair,
        log::Kind::Warning => Kind::Warning,
    };
    Change { at, program, number, kind, text }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use daemon::liveness::Liveness;
    use daemon::status::File;
    use serde_json::{Map, json};

    use super::*;
    use crate::command::page::Shown;
    use crate::run::PROGRAM;

    #[tokio::test]
    async fn facts_are_gathered_once_for_all_who_ask_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let (shell, run_dir) = (Shell::new(&PROGRAM), folder.path().to_owned());
        let mut questions = shell.board.details();
        let wanted = Wanted { shown: Shown::Loopback, proxy_dir: run_dir.join("none"), run_dir: run_dir.clone() };
        let gatherer = Gatherer::new(&shell, &wanted);
        shell.board.set(&json!({"node": {"public_ip": "10.4.7.21"}, "lease_count": 1}));
        assert!(questions.is_empty(), "nobody asks");
        let leases = json!({"leases": {"172.7.22.0/24": {"public_ip": "10.4.7.22"}}});
        let answer = async {
            let details: Map<_, _> = leases.as_object().cloned().unwrap();
            questions.recv().await.unwrap().send(details).unwrap();
        };
        let (one, other, ()) = tokio::join!(gatherer.snapshot(""), gatherer.snapshot("web"), answer);
        assert_eq!((&one.status, &one.status.node.public_ip[..]), (&other.status, "10.4.7.21"));
        assert_eq!(one.peers().next().unwrap().1.public_ip, "10.4.7.22");
        assert!(one.probes.is_empty() && one.proxy.problem.as_ref().unwrap().contains("is not running on this node"));
        let probes = json!({"172.7.22.0/24": {"at": 7, "reached": true, "largest": 1450}});
        std::fs::write(run_dir.join(kept::FILE), probes.to_string()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while gatherer.snapshot("").await.probes.is_empty() {
            assert!(Instant::now() < deadline, "the probes are not read");
            tokio::task::yield_now().await;
        }
        assert!(questions.is_empty(), "the status is the same");
    }

    #[tokio::test]
    async fn leases_that_a_busy_daemon_does_not_say_are_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let (shell, run_dir) = (Shell::new(&PROGRAM), folder.path().to_owned());
        let mut questions = shell.board.details();
        let wanted = Wanted { shown: Shown::Loopback, proxy_dir: run_dir.join("none"), run_dir };
        let gatherer = Gatherer::new(&shell, &wanted);
        shell.board.set(&json!({"lease_count": 1}));
        let (busy, ()) = tokio::join!(gatherer.snapshot(""), async { drop(questions.recv().await) });
        assert_eq!((busy.status.lease_count, &busy.status.leases), (1, &None));
        let details: Map<_, _> =
            json!({"leases": {"172.7.22.0/24": {"public_ip": "10.4.7.22"}}}).as_object().cloned().unwrap();
        let answer = async { questions.recv().await.unwrap().send(details).unwrap() };
        let ask = async {
            let deadline = Instant::now() + Duration::from_secs(30);
            while gatherer.snapshot("").await.peers().next().is_none() {
                assert!(Instant::now() < deadline, "nobody asks again");
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(ask, answer);
        // Another status, and busy again.
        shell.board.set(&json!({"lease_count": 2}));
        let again = async {
            while gatherer.snapshot("").await.status.lease_count != 2 {
                tokio::task::yield_now().await;
            }
            gatherer.snapshot("").await
        };
        let (busy, ()) = tokio::join!(again, async { drop(questions.recv().await) });
        assert_eq!(busy.peers().count(), 1, "what it said last");
    }

    #[test]
    fn a_proxy_that_is_absent_dead_stuck_or_mute_is_said_to_be_so() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let problem = || {
            let proxy = services(folder, "/services?q=");
            assert_eq!(proxy.services, None);
            proxy.problem.unwrap()
        };
        assert!(problem().starts_with("ipvs-proxy is not running on this node: "), "{}", problem());
        let mut file = File::new(folder, Liveness::default());
        file.set(json!({"ok": true}));
        file.write(Duration::ZERO);
        assert!(
            problem().contains("runs on this node and does not say what it serves: no daemon answers"),
            "{}",
            problem()
        );
        let text = std::fs::read_to_string(folder.join(daemon::status::FILE)).unwrap();
        let mut status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let beat = status["process"]["monotonic"].as_u64().unwrap();
        status["process"]["monotonic"] = json!(beat.saturating_sub(47));
        std::fs::write(folder.join(daemon::status::FILE), status.to_string()).unwrap();
        assert!(problem().contains("has made no progress for 40 s"), "{}", problem());
        drop(file);
        assert!(problem().contains("it has ended"), "{}", problem());
    }
}
