//! The set of Linux namespaces a piece of work runs in: a machine's four, or a Pod's network with its machine's other three.
//!
//! Invariant: only threads made for the purpose ever change namespace, and they end with the work. The calling thread and
//! the test process stay where they are, so tests for different machines can run at the same time (namespaces(7)).

use std::fs::File;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// Open handles of the namespaces; they stay valid after the process they were taken from has ended.
#[derive(Debug)]
pub(crate) struct Namespaces {
    network: File,
    uts: Option<File>,
    mount: Option<File>,
    pid: Option<File>,
}

impl Namespaces {
    /// All four namespaces of the process `pid`, as this process numbers it.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let open = |kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            File::open(&path).with_context(|| format!("open namespace {path}"))
        };
        Ok(Self { network: open("net")?, uts: Some(open("uts")?), mount: Some(open("mnt")?), pid: Some(open("pid")?) })
    }

    /// The network of these namespaces with this process's own files and processes: what wires machines together needs to
    /// name a process (`ip link ... netns PID`) of another machine.
    pub(crate) fn network_only(&self) -> Result<Self> {
        Ok(Self { network: self.network.try_clone()?, uts: None, mount: None, pid: None })
    }

    /// These namespaces with another network, named by an nsfs file.
    pub(crate) fn with_network(&self, path: &Path) -> Result<Self> {
        let network = File::open(path).with_context(|| format!("open network namespace {}", path.display()))?;
        let copy = |file: &Option<File>| file.as_ref().map(File::try_clone).transpose();
        Ok(Self { network, uts: copy(&self.uts)?, mount: copy(&self.mount)?, pid: copy(&self.pid)? })
    }

    /// Runs `work` on a thread inside the network, hostname and files of these namespaces.
    ///
    /// The thread keeps this process's PID namespace, so that `work` may start threads of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Runs `work`, which starts a child process, on a thread whose children are born inside all of these namespaces.
    pub(crate) fn giving_birth<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            if let Some(pid) = &self.pid {
                setns(pid, CloneFlags::CLONE_NEWPID).context("enter PID namespace")?;
            }
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread; last the mount namespace, which also sets its root and working folder.
    fn enter(&self) -> Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
        if let Some(uts) = &self.uts {
            setns(uts, CloneFlags::CLONE_NEWUTS).context("enter UTS namespace")?;
        }
        if let Some(mount) = &self.mount {
            // A thread may change its mount namespace only when it shares root and working folder with no other thread.
            unshare(CloneFlags::CLONE_FS).context("give the thread a root folder of its own")?;
            setns(mount, CloneFlags::CLONE_NEWNS).context("enter mount namespace")?;
        }
        Ok(())
    }
}

/// Runs `work` on a new thread and waits for it; a panic goes on in the caller.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().spawn_scoped(scope, work).map_err(|error| anyhow!("start a thread: {error}"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
