//! A command that runs inside a machine or a Pod: `std::process::Command` with a place and a time limit.
//!
//! Invariant: no command outlives its limit, and what it printed is part of the error when it fails. Output goes through
//! unlinked files, not pipes, so a daemon that a command leaves behind cannot keep the caller waiting.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::namespaces::Namespaces;
use crate::process::Process;

/// Time limit of a command that sets none: long enough for any tool inside the lab kernel.
const DEFAULT_LIMIT: Duration = Duration::from_secs(30);

/// A command to be started inside a machine's namespaces; made by `Host::command` and `Pod::command`.
#[derive(Debug)]
pub struct Command {
    inner: std::process::Command,
    namespaces: Option<Arc<Namespaces>>,
    place: String,
    input: Option<Vec<u8>>,
    limit: Duration,
}

/// What a finished command left: exit status and both streams, read as UTF-8 with replacement characters.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status as wait(2) returns it.
    pub status: ExitStatus,
    /// Everything written to standard output.
    pub stdout: String,
    /// Everything written to standard error.
    pub stderr: String,
}

impl Command {
    pub(crate) fn new(place: &str, namespaces: Option<Arc<Namespaces>>, program: impl AsRef<OsStr>) -> Self {
        let mut inner = std::process::Command::new(program);
        // Tests wait for lines as people read them; what a daemon takes by itself is `tests/logs.rs`'s.
        inner.envs(["NETD_LOG_FORMAT", "IPVS_PROXY_LOG_FORMAT"].map(|name| (name, "text")));
        Self { inner, namespaces, place: place.to_owned(), input: None, limit: DEFAULT_LIMIT }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(key, value);
        self
    }

    /// Removes one inherited environment variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.inner.env_remove(key);
        self
    }

    /// Removes the whole inherited environment.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.inner.env_clear();
        self
    }

    /// Sets the working folder, a path inside the machine; `/` without this call.
    #[must_use]
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.inner.current_dir(folder);
        self
    }

    /// Gives the command these bytes as its whole standard input; empty without this call.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Sets the time limit of [`run`](Self::run) and [`output`](Self::output); 30 s without this call.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the command to its end and requires success.
    ///
    /// # Errors
    /// When it cannot be started, passes its limit (it is then killed) or exits with anything but 0; with both streams.
    pub fn run(self) -> Result<Output> {
        let what = self.to_string();
        let output = self.output()?;
        if !output.status.success() {
            bail!("{what}: {}{}", output.status, indented(&output));
        }
        Ok(output)
    }

    /// Runs the command to its end, whatever its exit status.
    ///
    /// # Errors
    /// When it cannot be started or passes its limit (it is then killed).
    pub fn output(mut self) -> Result<Output> {
        let what = self.to_string();
        let (mut stdout, mut stderr) = (unlinked_file()?, unlinked_file()?);
        self.inner.stdin(input_file(self.input.as_deref())?).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let mut child = self.spawn_inner().with_context(|| what.clone())?;
        let status = wait_at_most(&mut child, self.limit).with_context(|| format!("{what}: wait"))?;
        let ended = status.is_some();
        if !ended {
            child.kill().with_context(|| format!("{what}: kill"))?;
        }
        let status = child.wait().with_context(|| format!("{what}: wait"))?;
        let output = Output { status, stdout: read_back(&mut stdout)?, stderr: read_back(&mut stderr)? };
        if !ended {
            bail!("{what}: killed after its limit of {:?}{}", self.limit, indented(&output));
        }
        Ok(output)
    }

    /// Starts the command as a long-running process whose streams are kept under `name`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self, name: &str) -> Result<Process> {
        let what = self.to_string();
        let (reader, writer) = io::pipe().context("make a pipe")?;
        self.inner.stdin(input_file(self.input.as_deref())?).stdout(writer.try_clone()?).stderr(writer);
        let child = self.spawn_inner().with_context(|| what.clone())?;
        let place = self.place.clone();
        // The command holds the pipe's write ends; they must close for the reader to see the end of the process's output.
        drop(self);
        Process::follow(&format!("{name} on {place}"), child, reader)
    }

    fn spawn_inner(&mut self) -> Result<Child> {
        let inner = &mut self.inner;
        let namespaces = self.namespaces.as_ref().with_context(|| format!("{} is switched off", self.place))?;
        Ok(namespaces.giving_birth(|| inner.spawn())??)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.place, self.inner.get_program().to_string_lossy())?;
        for arg in self.inner.get_args().map(OsStr::to_string_lossy) {
            if arg.is_empty() || arg.contains([' ', '\n', '\'', '"']) {
                write!(f, " {arg:?}")?
            } else {
                write!(f, " {arg}")?
            }
        }
        Ok(())
    }
}

/// Waits for `child` at most `limit`; `None` when it still runs. The child is reaped only when it has ended.
pub(crate) fn wait_at_most(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (ended, on_end) = mpsc::channel();
    // WNOWAIT leaves the zombie, so its PID cannot be reused between this thread and the caller's kill or wait.
    thread::Builder::new().spawn(move || {
        let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = ended.send(());
    })?;
    match on_end.recv_timeout(limit) {
        Ok(()) => child.wait().map(Some),
        Err(_) => Ok(None),
    }
}

/// Splits `["ip", "link", "show"]` into program and arguments.
pub(crate) fn program_and_args<'a>(words: &'a [&'a str]) -> Result<(&'a str, &'a [&'a str])> {
    words.split_first().map(|(program, args)| (*program, args)).context("an empty command")
}

fn indented(output: &Output) -> String {
    let mut text = String::new();
    for (name, stream) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !stream.trim().is_empty() {
            text.push_str(&format!("\n  {name}: {}", stream.trim().replace('\n', "\n          ")));
        }
    }
    text
}

fn unlinked_file() -> Result<File> {
    tempfile::tempfile().context("make a temporary file for a command's output")
}

fn input_file(input: Option<&[u8]>) -> Result<Stdio> {
    let Some(bytes) = input else { return Ok(Stdio::null()) };
    let mut file = unlinked_file()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

fn read_back(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
