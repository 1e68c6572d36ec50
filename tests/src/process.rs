//! A long-running process of a machine with its captured log.
//!
//! Invariant: the process never outlives its `Process` value, and a signal never reaches a foreign process: the PID is
//! signalled only while the exit has not been collected, under one lock with the collection.

use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::evidence;

/// Lines of log that an error message shows.
const TAIL_LINES: usize = 30;
/// How long a killed process may take to be collected.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long after the exit the rest of the log is waited for; a child that lives on may keep the pipe open for ever.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A process started by `Command::start`; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    record: Arc<Record>,
}

/// What the reader and the collector threads have seen so far.
#[derive(Debug, Default)]
pub(crate) struct Record {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Vec<String>,
    log_ended: bool,
    exit: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn follow(name: &str, child: Child, log: PipeReader) -> Result<Self> {
        let record = Arc::new(Record::default());
        let pid = Pid::from_raw(i32::try_from(child.id()).context("PID out of range")?);
        let (for_reader, for_collector) = (Arc::clone(&record), Arc::clone(&record));
        thread::Builder::new().spawn(move || for_reader.read(log)).context("start a thread")?;
        thread::Builder::new().spawn(move || for_collector.collect(pid, child)).context("start a thread")?;
        evidence::remember(name, &record);
        Ok(Self { name: name.to_owned(), pid, record })
    }

    /// PID as the test process numbers it; inside its machine the process has another one.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Everything the process has written so far, both streams in the order of writing.
    #[must_use]
    pub fn log(&self) -> String {
        self.record.lock().lines.join("\n")
    }

    /// Whether the process has not ended yet.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.record.lock().exit.is_none()
    }

    /// Waits for a log line that contains `part`, lines already written included, and returns it.
    ///
    /// # Errors
    /// When the limit passes or the process ends without such a line; with the end of the log.
    pub fn wait_for_line(&self, part: &str, limit: Duration) -> Result<String> {
        let mut next = 0;
        self.wait_until(limit, &format!("no line with {part:?}"), |seen| {
            let found = seen.lines.iter().skip(next).find(|line| line.contains(part)).cloned();
            next = seen.lines.len();
            match found {
                None if seen.log_ended => Some(None),
                None => None,
                found => Some(found),
            }
        })?
        .with_context(|| {
            format!("{} closed its output without a line with {part:?}\n{}", self.name, self.record.tail())
        })
    }

    /// Waits until the process has ended by itself and its log is whole.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let exit = self.wait_until(limit, "still running", |seen| seen.exit)?;
        let _ = self.wait_until(LAST_WORDS, "log still open", |seen| seen.log_ended.then_some(()));
        Ok(exit)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has already ended, with its status, or the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let seen = self.record.lock();
        if let Some(exit) = seen.exit {
            bail!("{} cannot get {signal}: it has ended with {exit}", self.name);
        }
        kill(self.pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Asks the process to end (SIGTERM) and returns its exit status; after `limit` it is killed and that is an error.
    ///
    /// # Errors
    /// When it had ended before, or did not end in time.
    pub fn terminate(&self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let ended = self.wait(limit);
        if ended.is_err() {
            self.kill()?;
        }
        ended.with_context(|| format!("{} ignored SIGTERM", self.name))
    }

    /// Ends the process at once (SIGKILL), as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel does not end it.
    pub fn kill(&self) -> Result<()> {
        {
            let seen = self.record.lock();
            if seen.exit.is_none() {
                match kill(self.pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => bail!("kill {}: {errno}", self.name),
                }
            }
        }
        self.wait(KILL_LIMIT).map(|_| ())
    }

    fn wait_until<T>(
        &self,
        limit: Duration,
        missing: &str,
        mut condition: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut seen = self.record.lock();
        loop {
            if let Some(value) = condition(&seen) {
                return Ok(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(seen);
                bail!("{}: {missing} after {limit:?}\n{}", self.name, self.record.tail());
            }
            seen = self.record.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("lab: {error:#}");
        }
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, log: PipeReader) {
        let mut reader = BufReader::new(log);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(length) if length > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            self.lock().lines.push(line);
            self.changed.notify_all();
        }
        self.lock().log_ended = true;
        self.changed.notify_all();
    }

    /// Waits for the exit without the lock, then collects it under the lock (see the module's invariant).
    fn collect(&self, pid: Pid, mut child: Child) {
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut seen = self.lock();
        // A failing wait(2) means that somebody else has collected the child: it is gone, its status unknown.
        seen.exit = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0xff00)));
        drop(seen);
        self.changed.notify_all();
    }

    /// The last lines of the log and how the process ended, for error messages.
    pub(crate) fn tail(&self) -> String {
        let seen = self.lock();
        let hidden = seen.lines.len().saturating_sub(TAIL_LINES);
        let mut text = String::new();
        if hidden > 0 {
            text.push_str(&format!("    ... {hidden} lines before\n"));
        }
        for line in seen.lines.iter().skip(hidden) {
            text.push_str(&format!("    | {line}\n"));
        }
        match seen.exit {
            Some(exit) => text.push_str(&format!("    = {exit}")),
            None => text.push_str("    = running"),
        }
        text
    }
}
