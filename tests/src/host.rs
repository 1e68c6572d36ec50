//! A machine of the lab: its own network, files, hostname and processes on one kernel.
//!
//! Invariant: nothing a machine does is visible outside it. `/etc`, `/opt` and `/var` are copy-on-write views of the real
//! ones, `/run` is empty, `/proc` and `/sys` show the machine's own processes and devices; all of it ends with the last
//! handle. `/tmp` and the build's folders stay shared with the test. Where that cannot be proved no machine is made.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::booted::Booted;
use crate::command::{Command, Output, program_and_args};
use crate::isolation;
use crate::keeper::Keeper;
use crate::namespaces::Namespaces;
use crate::place::Place;
use crate::pod::Pod;

/// Folders a program may write to without touching the real machine.
const COPY_ON_WRITE: [&str; 3] = ["/etc", "/opt", "/var"];

/// A machine; clones are handles of the same one, and it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    address: Option<Ipv4Addr>,
    namespaces: Arc<Namespaces>,
    /// What boots inside of these namespaces, on a machine that does.
    booted: Option<Booted>,
    keeper: Keeper,
}

impl Host {
    /// Starts a machine that is connected to nothing; its loopback is up and it does not forward.
    ///
    /// # Errors
    /// When the kernel refuses a namespace or a mount (needs root and overlayfs), and where a machine would not be apart from the real
    /// one: in a chroot.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_at(name, None)
    }

    /// Starts a machine that will have this address on an underlay.
    pub(crate) fn start_at(name: &str, address: Option<Ipv4Addr>) -> Result<Self> {
        let host = Self { inner: Arc::new(Self::furnished(name, address)?) };
        host.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(host)
    }

    fn furnished(name: &str, address: Option<Ipv4Addr>) -> Result<Inner> {
        isolation::prove_own_root()?;
        let keeper = Keeper::start(name)?;
        isolation::prove_private_mounts(keeper.pid())?;
        let namespaces = Arc::new(Namespaces::of_process(keeper.pid())?);
        let inner = Inner { name: name.to_owned(), address, namespaces, booted: None, keeper };
        inner.namespaces.within(furnish)?.with_context(|| format!("furnish machine {name}"))?;
        isolation::prove_own_files(inner.keeper.pid(), &[&COPY_ON_WRITE[..], &["/run"]].concat())?;
        inner.namespaces.within(forget_networks)?.with_context(|| format!("clear the copies of machine {name}"))?;
        Ok(inner)
    }

    /// Makes a machine that boots systemd; it is switched off, with an empty disk.
    pub(crate) fn with_system(name: &str, address: Ipv4Addr, prefix_length: u8, programs: &[PathBuf]) -> Result<Self> {
        let mut inner = Self::furnished(name, Some(address))?;
        let booted = Booted::new(name, address, prefix_length, Arc::clone(&inner.namespaces));
        inner.booted = Some(booted.with_programs(programs));
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What boots on this machine.
    pub(crate) fn booted(&self) -> Result<&Booted> {
        self.inner.booted.as_ref().with_context(|| format!("{} is not a machine that boots", self.name()))
    }

    /// Host name, as `hostname` prints it inside.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The machine's address on its underlay.
    ///
    /// # Errors
    /// When the machine was started without an underlay.
    pub fn address(&self) -> Result<Ipv4Addr> {
        self.inner.address.with_context(|| format!("{} is on no underlay", self.name()))
    }

    /// PID of the machine's first process as the test numbers it: `nsenter -a -t PID` enters the machine. 0 while it is switched off.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.booted.as_ref().map_or_else(|| self.inner.keeper.pid(), Booted::pid)
    }

    /// A command that will run inside the machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.name(), self.reachable(), program)
    }

    /// Runs a command line to its end and requires success: `host.run(&["ip", "route"])?.stdout`.
    ///
    /// # Errors
    /// As [`Command::run`].
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = program_and_args(words)?;
        self.command(program).args(args).run()
    }

    /// Runs `work` on a thread with the machine's network, files and hostname: sockets it opens belong to the machine.
    ///
    /// # Errors
    /// When the thread cannot enter the machine.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespaces()?.within(work).with_context(|| format!("enter machine {}", self.name()))
    }

    /// The path under which the test process sees the machine's absolute `path`, for reading and writing with `std::fs`.
    ///
    /// A symbolic link with an absolute target inside leads out of the machine; `/var/run` is one, use `/run`.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref();
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(relative)
    }

    /// Reads a text file of the machine.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        fs::read_to_string(self.path(path)).with_context(|| format!("read {} of {}", path.display(), self.name()))
    }

    /// Writes a file of the machine, with the folders above it. A symbolic link in its place is replaced: it may lead out of the machine,
    /// to a program under test.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let outside = self.path(path);
        if outside.is_symlink() {
            fs::remove_file(&outside).with_context(|| format!("replace the link {}", path.display()))?;
        }
        let written = outside.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&outside, content));
        written.with_context(|| format!("write {} of {}", path.display(), self.name()))
    }

    /// The network of a Pod that a container runtime has made, by its address.
    ///
    /// # Errors
    /// When no network of the machine's Pods has it.
    pub fn pod_with_address(&self, name: &str, address: IpAddr) -> Result<Pod> {
        Pod::find(self, name, address)
    }

    /// Makes the network of a Pod as a container runtime does: a namespace file `/run/netns/cni-NAME` with nothing in it.
    ///
    /// # Errors
    /// When the name is taken on this machine.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::create(self, name)
    }

    pub(crate) fn namespaces(&self) -> Result<Arc<Namespaces>> {
        self.reachable().with_context(|| format!("{} is switched off", self.name()))
    }

    /// The namespaces in which work for the machine is done; none while it is switched off.
    fn reachable(&self) -> Option<Arc<Namespaces>> {
        match &self.inner.booted {
            Some(booted) => booted.namespaces(),
            None => Some(Arc::clone(&self.inner.namespaces)),
        }
    }
}

impl Place for Host {
    fn label(&self) -> String {
        self.name().to_owned()
    }

    fn command(&self, program: &OsStr) -> Command {
        self.command(program)
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.within(work)
    }
}

/// Gives the mount namespace of the calling thread the files of a machine.
fn furnish() -> Result<()> {
    // Upper layers live on a tmpfs that the empty /run then hides; the overlays keep it alive.
    tmpfs("/run")?;
    for lower in COPY_ON_WRITE {
        let (upper, scratch) = (format!("/run/upper{lower}"), format!("/run/scratch{lower}"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&scratch)?;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={scratch}");
        mount(Some("overlay"), lower, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("lay a copy-on-write view over {lower}"))?;
    }
    tmpfs("/run")?;
    fs::create_dir_all("/run/netns")?;
    fs::create_dir_all("/run/lock")?;
    let none: Option<&str> = None;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("mount /sys")?;
    // A new network namespace copies this from the first one; a machine of the lab starts as a fresh kernel would.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("write net.ipv4.ip_forward")
}

/// Clears from the copies what the real machine has of container networks: a test begins with none, also on a node.
fn forget_networks() -> Result<()> {
    for folder in ["/etc/cni/net.d", "/opt/cni", "/var/lib/cni"] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(folder),
            _ => {}
        }
    }
    fs::create_dir_all("/etc/cni/net.d").context("/etc/cni/net.d")
}

fn tmpfs(path: &str) -> Result<()> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("mount an empty {path}"))
}
