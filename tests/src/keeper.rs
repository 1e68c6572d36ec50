//! The process that keeps a machine's namespaces alive: PID 1 of the machine.
//!
//! Invariant: the machine lives exactly as long as the test holds the write end of the keeper's standard input. A test that
//! ends in any way, SIGKILL included, closes it; the keeper (`cat`) reads end of file and ends, the kernel kills every process
//! of its PID namespace, and with the last of them go network, mounts and files. `PR_SET_PDEATHSIG` is no alternative: it fires when
//! the *thread* that forked ends, and threads of a test come and go.

use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};

use crate::command::wait_at_most;

/// How long the kernel may take to end all processes of a machine.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running keeper; dropping it ends the machine.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts a keeper in new network, mount, UTS and PID namespaces, with `/proc` of its own.
    pub(crate) fn start(hostname: &str) -> Result<Self> {
        let hostname = CString::new(hostname).context("host name holds a NUL byte")?;
        let child = thread::scope(|scope| {
            let birth = scope.spawn(|| {
                // Only children of this thread are born into the new PID namespace, the first as its PID 1.
                unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace (needs root)")?;
                spawn_cat(&hostname).context("start the keeper of a machine")
            });
            birth.join().map_err(|_| anyhow!("the thread that starts a keeper panicked"))?
        })?;
        Ok(Self { child })
    }

    /// PID as this process numbers it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // ESRCH is impossible before the wait below; a failed kill leaves the end of file on stdin to do the work.
        let _ = self.child.kill();
        drop(self.child.stdin.take());
        if !matches!(wait_at_most(&mut self.child, END_LIMIT), Ok(Some(_))) {
            eprintln!(
                "lab: machine of keeper {} did not end within {END_LIMIT:?}; is a child of the test not waited for?",
                self.child.id()
            );
        }
    }
}

#[allow(unsafe_code)]
fn spawn_cat(hostname: &CString) -> io::Result<Child> {
    let hostname = hostname.clone();
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    // SAFETY: `become_machine` runs between fork and exec; it makes system calls only and allocates nothing.
    unsafe { command.pre_exec(move || become_machine(&hostname)) };
    command.spawn()
}

/// Runs in the forked child: own namespaces, private mounts, own `/proc`, and zombies reaped by the kernel.
fn become_machine(hostname: &CString) -> io::Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    set_hostname(hostname)?;
    ignore_child_exits()
}

#[allow(unsafe_code)]
fn set_hostname(hostname: &CString) -> io::Result<()> {
    // SAFETY: the pointer and the length describe the live bytes of `hostname`.
    let result = unsafe { libc::sethostname(hostname.as_ptr(), hostname.as_bytes().len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `cat` never waits for children; with SIGCHLD ignored (kept over exec) the kernel reaps orphans itself (wait(2), NOTES).
#[allow(unsafe_code)]
fn ignore_child_exits() -> io::Result<()> {
    // SAFETY: no handler function is installed.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    Ok(())
}
