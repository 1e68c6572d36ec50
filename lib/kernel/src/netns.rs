//! Network namespaces.
//!
//! Invariant: a thread that enters a namespace to work there is a thread of its own and ends there. The one exception
//! is [`Netns::enter`], for a process that has a single thread and ends soon: the CNI plugin.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs};

use crate::error::{Cause, KernelError};

/// The calling thread's own namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An open network namespace; it exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// The namespace that the file at `path` stands for.
    ///
    /// # Errors
    /// When the file cannot be opened, or is an ordinary file: what is left of a namespace whose mount is gone.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let error = |call, source| KernelError::io("open network namespace", path.display(), call, source);
        // Of a pipe in its place nobody waits for the other end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|source| error("open", source))?;
        let kind = fstatfs(&file).map_err(|errno| error("fstatfs", errno.into()))?.filesystem_type();
        if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
            let cause = Cause::Unexpected("an ordinary file, no namespace is mounted there".to_owned());
            return Err(KernelError::new("open network namespace", path.display(), cause));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor's number, for messages that name a namespace by it (IFLA_NET_NS_FD).
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// True when it is the calling thread's namespace, whatever the path it was opened at.
    ///
    /// # Errors
    /// When one of the two cannot be examined; /proc must be mounted.
    pub fn is_current(&self) -> Result<bool, KernelError> {
        let id = |meta: &Metadata| (meta.dev(), meta.ino());
        let error = |source| KernelError::io("examine network namespace", self.path.display(), "fstat", source);
        let own = fs::metadata(CURRENT)
            .map_err(|source| KernelError::io("examine network namespace", CURRENT, "stat", source))?;
        Ok(id(&self.file.metadata().map_err(error)?) == id(&own))
    }

    /// Moves the calling thread into the namespace.
    ///
    /// # Errors
    /// When the kernel refuses (CAP_SYS_ADMIN is needed).
    pub fn enter(&self) -> Result<(), KernelError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| KernelError::io("enter network namespace", self.path.display(), "setns", errno.into()))
    }

    /// Runs `work` in the namespace, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the thread cannot be started or dies.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
        let error = |text: &str| {
            KernelError::new("enter network namespace", self.path.display(), Cause::Unexpected(text.to_owned()))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map_err(|source| KernelError::io("enter network namespace", self.path.display(), "clone", source))?;
            thread.join().map_err(|_| error("the thread inside panicked"))?
        })
    }
}

/// Runs `work` on a thread of its own in a network namespace of its own, which is empty and ends with it.
///
/// # Errors
/// When the kernel refuses the namespace (CAP_SYS_ADMIN is needed), or the thread cannot be started or dies.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, KernelError> {
    let error = |call, source| KernelError::io("make", "a network namespace", call, source);
    std::thread::scope(|scope| {
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| error("unshare", errno.into()))?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().name("aside".to_owned()).spawn_scoped(scope, inside);
        let thread = thread.map_err(|source| error("clone", source))?;
        thread.join().map_err(|_| error("join", std::io::Error::other("the thread inside panicked")))?
    })
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rtnl;

    #[test]
    fn what_is_made_aside_is_not_here() {
        let here = fs::read_link(CURRENT).unwrap();
        // Without the right nothing is run.
        let Ok((there, links)) = aside(|| (fs::read_link(CURRENT).unwrap(), Rtnl::open().unwrap().links().unwrap()))
        else {
            return;
        };
        assert_ne!(there, here);
        assert_eq!(links.iter().filter(|link| link.name.as_str() == "lo").count(), 1);
        assert_eq!(fs::read_link(CURRENT).unwrap(), here);
    }
}
