//! The status file: what the daemon knows, with the process that said so and its heartbeat.
//!
//! A running daemon holds a lock of writers on the file [`LOCK`] beside it, which ends with the process in whatever way that
//! ends and which other process namespaces see, too. Invariants: the file is replaced whole, readable for everybody; it
//! is written when it says something new, and every [`HEARTBEAT`] while every loop makes progress. Whether one is overdue is
//! read from a clock that nobody sets.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, fcntl};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::replace_volatile;
use crate::liveness::Liveness;

/// Name of the file in the run-time folder.
pub const FILE: &str = "status.json";

/// Name of the file that a running daemon holds a lock on.
const LOCK: &str = "alive";

/// Longest time between two writes.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Age of a heartbeat from which on the daemon counts as stuck.
pub const STALE: Duration = Duration::from_secs(30);

/// Shortest time between two writes.
const PAUSE: Duration = Duration::from_millis(500);

/// Field of the file with the process.
const PROCESS: &str = "process";

/// The process that wrote a status. Times are seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its id, in its own namespace.
    pub id: u32,
    /// When it started.
    pub started: u64,
    /// When it last said that it makes progress.
    pub heartbeat: u64,
    /// The same in seconds of `CLOCK_MONOTONIC` (clock_gettime(2)); a program from before this field does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monotonic: Option<u64>,
}

impl Process {
    /// Age of its last heartbeat, while it `is_alive`: one that has ended may have done so before this boot.
    fn age(&self, is_alive: bool) -> Duration {
        let unset = self.monotonic.zip(monotonic()).filter(|_| is_alive);
        let (then, now) = unset.unwrap_or_else(|| (self.heartbeat, now()));
        Duration::from_secs(now.saturating_sub(then))
    }
}

/// What became of the process that wrote a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs.
    Running,
    /// It runs, but makes no progress.
    Stuck,
    /// It has ended.
    Dead,
}

/// The file as the daemon writes it.
#[derive(Debug)]
pub struct File {
    folder: PathBuf,
    process: Process,
    liveness: Liveness,
    lock: Option<fs::File>,
    /// The last status that was set.
    status: Value,
    /// It has not been written yet.
    changed: bool,
    /// When it was written last, on the caller's clock.
    written: Option<Duration>,
    /// The last failure, so that it is logged once. Its kind alone: the text has the name of a temporary file, another one each time.
    failure: Option<io::ErrorKind>,
}

impl File {
    /// A file in `folder`, which is made when it is not there; the heartbeat stops while `liveness` says stuck.
    #[must_use]
    pub fn new(folder: &Path, liveness: Liveness) -> Self {
        let process = Process { id: std::process::id(), started: now(), ..Process::default() };
        let (folder, status) = (folder.to_owned(), Value::Null);
        Self { folder, process, liveness, lock: None, status, changed: false, written: None, failure: None }
    }

    /// Sets what the next write says.
    pub fn set(&mut self, status: Value) {
        if self.status != status {
            self.status = status;
            self.changed = true;
        }
    }

    /// When the next write is due, on the caller's clock; never before there is a status.
    #[must_use]
    pub fn next(&self) -> Duration {
        if self.status.is_null() {
            return Duration::MAX;
        }
        let pause = if self.changed { PAUSE } else { HEARTBEAT };
        self.written.map_or(Duration::ZERO, |written| written + pause)
    }

    /// Writes the file if that is due. A file that cannot be written is logged once and hinders nothing.
    pub fn write(&mut self, at: Duration) {
        if at < self.next() {
            return;
        }
        self.written = Some(at);
        if self.liveness.is_stuck() {
            return;
        }
        (self.process.heartbeat, self.process.monotonic) = (now(), monotonic());
        match self.try_write() {
            Ok(()) => {
                self.changed = false;
                self.failure = None;
            }
            Err(error) => {
                if self.failure != Some(error.kind()) {
                    tracing::error!(folder = %self.folder.display(), %error, "the status file cannot be written");
                    self.failure = Some(error.kind());
                }
            }
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        let mut status = self.status.clone();
        if let Value::Object(fields) = &mut status {
            fields.insert(PROCESS.to_owned(), serde_json::to_value(self.process).map_err(io::Error::other)?);
        }
        let mut text = serde_json::to_vec_pretty(&status).map_err(io::Error::other)?;
        text.push(b'\n');
        replace_volatile(&self.folder.join(FILE), &text)?;
        self.hold_lock()
    }

    /// Holds the lock on the file that stands there now, whatever became of an earlier one.
    fn hold_lock(&mut self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.folder.join(LOCK);
        let held = self.lock.as_ref().and_then(|file| file.metadata().ok()).map(|held| (held.dev(), held.ino()));
        let there = fs::metadata(&path).ok().map(|there| (there.dev(), there.ino()));
        if held.is_some() && held == there {
            return Ok(());
        }
        // Locked before anybody else can open it: everybody may read it, and lock what he reads.
        let draft = tempfile::NamedTempFile::new_in(&self.folder)?;
        fcntl(draft.as_file(), FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK)))?;
        draft.as_file().set_permissions(Permissions::from_mode(0o644))?;
        let file = draft.persist(&path).map_err(|error| error.error)?;
        self.lock = Some(file);
        Ok(())
    }
}

/// A status file as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The whole content, with what became of its process beside the process.
    pub status: Value,
    /// Who wrote it.
    pub process: Process,
    /// What became of it.
    pub state: State,
    /// Age of the last heartbeat.
    pub age: Duration,
}

impl Stored {
    /// Reads the file in `folder` and finds out what became of its process.
    ///
    /// # Errors
    /// When there is no such file, or it is none of ours.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let text = bounded::read(&folder.join(FILE), bounded::STATUS)?;
        let mut status: Value = serde_json::from_slice(&text).map_err(io::Error::other)?;
        let process = status.get(PROCESS).and_then(|process| Process::deserialize(process).ok()).unwrap_or_default();
        let is_alive = is_locked(&folder.join(LOCK))?;
        let age = process.age(is_alive);
        let state = match (is_alive, age > STALE) {
            (false, _) => State::Dead,
            (true, true) => State::Stuck,
            (true, false) => State::Running,
        };
        if let Some(Value::Object(fields)) = status.get_mut(PROCESS) {
            fields.insert("state".to_owned(), serde_json::to_value(state).map_err(io::Error::other)?);
        }
        Ok(Self { status, process, state, age })
    }

    /// Says what the daemon says `now` instead of what the file said; the process stays. A daemon that has not said anything
    /// yet leaves the file's word.
    pub fn refresh(&mut self, now: Value) {
        if let (Value::Object(mut fields), Value::Object(file)) = (now, &self.status) {
            fields.extend(file.get(PROCESS).map(|process| (PROCESS.to_owned(), process.clone())));
            self.status = Value::Object(fields);
        }
    }

    /// What to say in front of a status that is not of a running `program`.
    #[must_use]
    pub fn warning(&self, program: &str) -> Option<String> {
        let (id, age) = (self.process.id, self.age.as_secs());
        match self.state {
            State::Running => None,
            State::Stuck => Some(format!(
                "{program} is stuck: process {id} has made no progress for {age} s; what follows is what it knew then"
            )),
            State::Dead => Some(format!(
                "{program} is not running: process {id} has ended, its last word is {age} s old; the kernel is as it left it"
            )),
        }
    }
}

/// True when a process holds a lock on the file as only somebody who may write it can: a lock of readers is nobody's word. Takes none itself,
/// so that those who ask do not mislead each other.
fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut lock = whole_file(libc::F_RDLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}

/// A lock of `kind` on a whole file; it belongs to the open file and ends with it.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds of a clock that nobody sets, the same for every process of this boot.
fn monotonic() -> Option<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    u64::try_from(time.tv_sec()).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use serde_json::json;

    use super::*;

    fn written(folder: &Path) -> File {
        let mut file = File::new(folder, Liveness::default());
        file.set(json!({"node": "n"}));
        file.write(Duration::ZERO);
        file
    }

    #[test]
    fn status_carries_its_process_and_is_readable_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let _file = written(&run);
        let stored = Stored::read(&run).unwrap();
        assert_eq!((stored.state, stored.process.id), (State::Running, std::process::id()));
        assert!(stored.process.started > 0 && stored.process.heartbeat >= stored.process.started);
        assert_eq!(stored.warning("netd"), None);
        assert_eq!((&stored.status["node"], &stored.status["process"]["state"]), (&json!("n"), &json!("running")));
        assert_eq!(fs::metadata(run.join(FILE)).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&run).unwrap().count(), 2, "the status and the lock");
    }

    #[test]
    fn what_the_daemon_says_now_replaces_the_file_and_keeps_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let _file = written(folder.path());
        let mut stored = Stored::read(folder.path()).unwrap();
        stored.refresh(Value::Null);
        assert_eq!(stored.status["node"], "n", "it has said nothing yet");
        stored.refresh(json!({"node": "m", "peers": 1}));
        let fields = ["node", "peers"].map(|field| stored.status[field].clone());
        assert_eq!((fields, &stored.status["process"]["state"]), ([json!("m"), json!(1)], &json!("running")));
    }

    #[test]
    fn status_of_a_dead_daemon_says_so() {
        let folder = tempfile::tempdir().unwrap();
        drop(written(folder.path()));
        let stored = Stored::read(folder.path()).unwrap();
        assert_eq!(stored.state, State::Dead);
        let warning = stored.warning("netd").unwrap();
        assert!(warning.starts_with(&format!("netd is not running: process {}", std::process::id())), "{warning}");
        assert!(Stored::read(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn status_of_a_stuck_daemon_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let file = written(folder.path());
        let then = monotonic().map(|now| now - 31);
        // The last is of a version that says less.
        for (heartbeat, monotonic) in [(now() - 31, then), (now() + 3600, then), (now() - 31, None)] {
            let old = json!({"process": Process { heartbeat, monotonic, ..file.process }});
            replace_volatile(&folder.path().join(FILE), old.to_string().as_bytes()).unwrap();
            let stored = Stored::read(folder.path()).unwrap();
            assert_eq!(stored.state, State::Stuck);
            assert!(stored.warning("netd").unwrap().contains("no progress for 3"));
        }
    }

    #[test]
    fn clock_that_is_set_makes_no_daemon_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = written(folder.path());
        let mut status: Value = serde_json::from_slice(&fs::read(folder.path().join(FILE)).unwrap()).unwrap();
        // As if the clock had been an hour behind when it was written.
        status[PROCESS]["heartbeat"] = json!(now() - 3600);
        replace_volatile(&folder.path().join(FILE), status.to_string().as_bytes()).unwrap();
        assert_eq!(Stored::read(folder.path()).unwrap().state, State::Running);
        file.lock = None;
        let stored = Stored::read(folder.path()).unwrap();
        assert!(stored.state == State::Dead && stored.age >= Duration::from_secs(3600), "{stored:?}");
    }

    #[test]
    fn file_that_cannot_be_written_is_logged_once_though_each_attempt_has_another_name() {
        use tracing_subscriber::layer::SubscriberExt as _;
        let recent = crate::log::Recent::default();
        let subscriber = tracing_subscriber::Registry::default().with(recent.layer());
        tracing::subscriber::with_default(subscriber, || {
            // No file can be made there, by nobody.
            let mut file = File::new(Path::new("/proc"), Liveness::default());
            for seconds in 0..4 {
                file.set(json!({"node": seconds}));
                file.write(Duration::from_secs(seconds));
            }
        });
        let entries = recent.entries();
        assert!(entries.len() == 1 && entries[0].text.contains("the status file cannot be written"), "{entries:?}");
    }

    #[test]
    fn file_is_written_for_changes_and_heartbeats_only() {
        let folder = tempfile::tempdir().unwrap();
        let inode = || fs::metadata(folder.path().join(FILE)).unwrap().ino();
        assert_eq!(File::new(folder.path(), Liveness::default()).next(), Duration::MAX, "there is no status yet");
        let mut file = written(folder.path());
        let first = inode();
        file.set(json!({"node": "n"}));
        file.write(Duration::from_secs(9));
        assert_eq!((inode(), file.next()), (first, HEARTBEAT), "nothing new");
        file.set(json!({"node": "m"}));
        assert_eq!(file.next(), PAUSE);
        file.write(Duration::from_millis(499));
        assert_eq!(inode(), first, "too soon");
        file.write(PAUSE);
        let second = inode();
        assert_ne!(second, first);
        file.write(PAUSE + HEARTBEAT);
        assert_ne!(inode(), second, "the heartbeat");
    }

    #[test]
    fn many_who_ask_at_once_do_not_mislead_each_other() {
        let folder = tempfile::tempdir().unwrap();
        drop(written(folder.path()));
        let ask = || (0..100).map(|_| Stored::read(folder.path()).unwrap().state).collect::<Vec<_>>();
        let states = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(states.iter().all(|state| *state == State::Dead));
    }

    #[test]
    fn whoever_may_read_the_file_makes_no_dead_daemon_live_and_stops_no_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let daemon = written(folder.path());
        let reader = fs::File::open(folder.path().join(LOCK)).unwrap();
        drop(daemon);
        fcntl(&reader, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_RDLCK))).unwrap();
        assert_eq!(Stored::read(folder.path()).unwrap().state, State::Dead);
        let _daemon = written(folder.path());
        assert_eq!(Stored::read(folder.path()).unwrap().state, State::Running);
    }

    #[test]
    fn lock_is_held_again_when_its_file_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = written(folder.path());
        fs::remove_file(folder.path().join(LOCK)).unwrap();
        assert_eq!(Stored::read(folder.path()).unwrap().state, State::Dead);
        file.write(HEARTBEAT);
        assert_eq!(Stored::read(folder.path()).unwrap().state, State::Running);
    }
}
