//! A Pod's network on a machine: a namespace file, as a container runtime makes it before it calls the CNI plugin, or one that a runtime
//! has made.
//!
//! Invariant: the file lives in the machine's own `/run`, so two machines may have Pods of one name, and no Pod can be left
//! behind by a test. What a runtime has made it also removes.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::command::{Command, Output, program_and_args};
use crate::host::Host;
use crate::namespaces::Namespaces;
use crate::place::Place;

/// The network of one Pod; removed when dropped, unless a runtime has made it.
pub struct Pod {
    host: Host,
    name: String,
    file: PathBuf,
    namespaces: Arc<Namespaces>,
    is_of_runtime: bool,
}

impl Pod {
    pub(crate) fn create(host: &Host, name: &str) -> Result<Self> {
        let file = format!("cni-{name}");
        host.run(&["ip", "netns", "add", &file])?;
        let file = Path::new("/run/netns").join(file);
        let namespaces = Arc::new(host.namespaces()?.with_network(&host.path(&file))?);
        Ok(Self { host: host.clone(), name: name.to_owned(), file, namespaces, is_of_runtime: false })
    }

    pub(crate) fn find(host: &Host, name: &str, address: IpAddr) -> Result<Self> {
        for entry in std::fs::read_dir(host.path("/run/netns")).context("read /run/netns")? {
            let file = Path::new("/run/netns").join(entry?.file_name());
            // One that is going is none any more.
            let Ok(namespaces) = host.namespaces()?.with_network(&host.path(&file)) else { continue };
            if namespaces.within(|| UdpSocket::bind((address, 0)).is_ok()).unwrap_or_default() {
                let namespaces = Arc::new(namespaces);
                return Ok(Self { host: host.clone(), name: name.to_owned(), file, namespaces, is_of_runtime: true });
            }
        }
        anyhow::bail!("no network on {} has the address {address} of the Pod {name}", host.name())
    }

    /// Name of the Pod, as given to `Host::pod`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine it is on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The namespace file, a path inside the machine: the value of `CNI_NETNS`.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.file
    }

    /// A command that will run with the Pod's network and the machine's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(&format!("{} on {}", self.name, self.host.name()), Some(Arc::clone(&self.namespaces)), program)
    }

    /// Runs a command line in the Pod to its end and requires success.
    ///
    /// # Errors
    /// As [`Command::run`].
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = program_and_args(words)?;
        self.command(program).args(args).run()
    }

    /// Runs `work` on a thread with the Pod's network: sockets it opens belong to the Pod.
    ///
    /// # Errors
    /// When the thread cannot enter the Pod.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespaces.within(work)
    }
}

impl Place for Pod {
    fn label(&self) -> String {
        format!("{} on {}", self.name, self.host.name())
    }

    fn command(&self, program: &OsStr) -> Command {
        self.command(program)
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.within(work)
    }
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pod {} on {}", self.name, self.host.name())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.is_of_runtime {
            return;
        }
        let name = format!("cni-{}", self.name);
        if let Err(error) = self.host.run(&["ip", "netns", "delete", &name]) {
            eprintln!("lab: {error:#}");
        }
    }
}
