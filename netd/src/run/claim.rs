//! What a daemon takes for itself on this host, so that no second one takes it as well.
//!
//! Each running daemon has a file that it holds a lock on, which ends with the process in whatever way that ends, and
//! that says what is its own. Those that see other files are noticed by the network namespace ([`namespace`]). Invariants:
//! two daemons never hold one subnet file, folder, tunnel device or overlapping Pod networks; the one that comes second
//! changes nothing and names the first; without a lock there is no daemon. Nobody but root can read or lock the files.

mod namespace;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use netstate::{IfName, Prefix};
use serde::{Deserialize, Serialize};

use self::namespace::Names;
use crate::command::instance::normal;

/// Where all daemons of this host look, whatever their flags say.
pub(super) const FOLDER: &str = "/run/netd/claims";

/// File that is locked while the others are read.
const LOCK: &str = "lock";

/// Tries before a daemon that ends counts as one that runs.
const TRIES: u32 = 20;

/// Pause between them.
const PAUSE: Duration = Duration::from_millis(100);

/// What one daemon has for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// Its process.
    pub(crate) process: u32,
    /// File by which it informs the plugin.
    pub(crate) subnet_file: PathBuf,
    /// Folder of its run-time files.
    pub(crate) run_dir: PathBuf,
    /// Its Pod networks, once they are known.
    #[serde(default)]
    pub(crate) networks: Vec<String>,
    /// Its tunnel devices, once they are known.
    #[serde(default)]
    pub(crate) devices: Vec<String>,
}

impl Claim {
    /// What a daemon has written; `None` when it is no claim, as of one that writes it just now.
    #[must_use]
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.networks.iter().filter_map(|text| text.parse().ok())
    }

    /// What both claim; `None` when they get along.
    pub(crate) fn conflict(&self, other: &Self) -> Option<String> {
        if self.subnet_file == other.subnet_file {
            return Some(format!("subnet file {}", self.subnet_file.display()));
        }
        if self.run_dir == other.run_dir {
            return Some(format!("run-time folder {}", self.run_dir.display()));
        }
        let overlap = |own: Prefix| other.prefixes().find(|their| own.overlaps(their)).map(|their| (own, their));
        if let Some((own, their)) = self.prefixes().find_map(overlap) {
            return Some(match own == their {
                true => format!("Pod network {own}"),
                false => format!("Pod network {their}, which overlaps {own}"),
            });
        }
        self.devices.iter().find(|device| other.devices.contains(device)).map(|device| format!("device {device}"))
    }
}

/// Why a claim is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Conflict {
    /// What both claim.
    what: String,
    /// The claim of the other one, where it can be read.
    other: Option<Claim>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.other {
            Some(other) => write!(
                f,
                "{} belongs to the netd with process {} already ({}subnet file {}, run-time folder {})",
                self.what,
                other.process,
                place(other.process),
                other.subnet_file.display(),
                other.run_dir.display()
            ),
            None => write!(
                f,
                "{} belongs already to a netd in this network namespace that does not see {FOLDER}, as one in a container \
                 (`ss -xlp` on the host names its process)",
                self.what
            ),
        }
    }
}

/// Why there is no claim.
#[derive(Debug)]
enum Refusal {
    /// A daemon has what was asked for.
    Held(Box<Conflict>),
    /// Claims cannot be read or written in this folder.
    Unknown(PathBuf, io::Error),
}

impl Refusal {
    fn of_a_daemon(self) -> anyhow::Error {
        match self {
            Self::Held(conflict) => refused(&conflict),
            Self::Unknown(folder, error) => unnoticed(&folder, error),
        }
    }

    fn of_a_cleanup(self) -> anyhow::Error {
        match self {
            Self::Held(conflict) => anyhow!("a daemon runs and would put everything back: stop it first: {conflict}"),
            Self::Unknown(folder, error) => {
                let root = if error.kind() == io::ErrorKind::PermissionDenied { ": run this as root" } else { "" };
                anyhow::Error::new(error).context(format!(
                    "whether a daemon runs, which would put everything back, is not known without {}{root}",
                    folder.display()
                ))
            }
        }
    }
}

/// Where a process has its number, if not here: in a container each begins with 1.
fn place(process: u32) -> &'static str {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    let is_seen = name == "netd\n" && process != std::process::id();
    if is_seen { "" } else { "in a container: `ss -xlp` on the host names its process; " }
}

/// The claim of this daemon; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed {
    claim: Claim,
    folder: PathBuf,
    held: Option<(PathBuf, File)>,
    names: Names,
    /// Claims of the other daemons that run.
    others: Vec<Claim>,
}

impl Claimed {
    /// Claims what the flags name.
    ///
    /// # Errors
    /// When another daemon has it, or when it cannot be claimed.
    pub(crate) fn take(subnet_file: &Path, run_dir: &Path) -> Result<Self> {
        Self::of(subnet_file, run_dir).renew(TRIES).map_err(Refusal::of_a_daemon)
    }

    /// Claims the same for a clean-up, for which no daemon may run.
    ///
    /// # Errors
    /// When a daemon has it, or when nobody can know.
    pub(crate) fn take_for_cleanup(subnet_file: &Path, run_dir: &Path) -> Result<Self> {
        Self::of(subnet_file, run_dir).renew(TRIES).map_err(Refusal::of_a_cleanup)
    }

    fn of(subnet_file: &Path, run_dir: &Path) -> Self {
        let claim = Claim {
            process: std::process::id(),
            subnet_file: absolute(subnet_file),
            run_dir: absolute(run_dir),
            ..Claim::default()
        };
        let names = Names::default();
        Self { claim, folder: PathBuf::from(FOLDER), held: None, names, others: Vec::new() }
    }

    /// Claims the Pod networks and the devices as well, before anything of them is touched.
    ///
    /// # Errors
    /// When another daemon has one of them, or when they cannot be claimed.
    pub(super) async fn extend(
        mut self,
        networks: impl IntoIterator<Item = Prefix>,
        devices: impl IntoIterator<Item = IfName>,
    ) -> Result<Self> {
        self.claim.networks = networks.into_iter().map(|network| network.to_string()).collect();
        self.claim.devices = devices.into_iter().map(|device| device.to_string()).collect();
        let mut tries = 1;
        loop {
            match self.write() {
                Ok(None) => return Ok(self),
                // The same, of one that sees other files.
                Ok(Some(conflict)) if conflict.other.is_none() && tries < TRIES => tokio::time::sleep(PAUSE).await,
                Ok(Some(conflict)) => return Err(refused(&conflict)),
                Err(error) => return Err(unnoticed(&self.folder, error)),
            }
            tries += 1;
        }
    }

    /// Claims these Pod networks and devices as well, while the daemon runs.
    ///
    /// # Errors
    /// When another daemon has one of them, or when they cannot be claimed; then the claim stays as it was.
    pub(super) fn take_more(
        &mut self,
        networks: impl IntoIterator<Item = Prefix>,
        devices: impl IntoIterator<Item = IfName>,
    ) -> Result<()> {
        let before = self.claim.clone();
        self.claim.networks.extend(networks.into_iter().map(|network| network.to_string()));
        self.claim.networks.sort_unstable();
        self.claim.networks.dedup();
        self.claim.devices.extend(devices.into_iter().map(|device| device.to_string()));
        self.claim.devices.sort_unstable();
        self.claim.devices.dedup();
        let refusal = match self.write() {
            Ok(None) => return Ok(()),
            Ok(Some(conflict)) => anyhow!("{conflict}"),
            Err(error) => unnoticed(&self.folder, error),
        };
        self.claim = before;
        Err(refusal)
    }

    /// True for a device of another daemon that runs.
    pub(crate) fn is_others_device(&self, device: &IfName) -> bool {
        self.others.iter().any(|other| other.devices.iter().any(|theirs| theirs == device.as_str()))
    }

    /// The devices of other daemons that run.
    pub(crate) fn others_devices(&self) -> BTreeSet<IfName> {
        self.others.iter().flat_map(|other| &other.devices).filter_map(|name| name.parse().ok()).collect()
    }

    /// True for a Pod network of which another daemon that runs has some.
    pub(crate) fn is_others_network(&self, network: &Prefix) -> bool {
        self.others.iter().flat_map(Claim::prefixes).any(|theirs| theirs.overlaps(network))
    }

    /// A Pod network that a daemon of this network namespace holds whose claim is not among the files here, as where `/run` is another one.
    ///
    /// # Errors
    /// When the kernel does not list the names.
    pub(crate) fn unseen(&self) -> io::Result<Option<String>> {
        let known: BTreeSet<Prefix> = self.others.iter().flat_map(Claim::prefixes).collect();
        let unseen: Vec<Prefix> = self.names.others()?.into_iter().filter(|network| !known.contains(network)).collect();
        // Not what a user without rights has bound.
        Names::default().take(&unseen, &[])
    }

    fn renew(mut self, most: u32) -> Result<Self, Refusal> {
        for tries in 1.. {
            match self.write() {
                Ok(None) => break,
                // A daemon that is being replaced may take a moment to end.
                Ok(Some(_)) if tries < most => std::thread::sleep(PAUSE),
                Ok(Some(conflict)) => return Err(Refusal::Held(Box::new(conflict))),
                Err(error) => return Err(Refusal::Unknown(self.folder.clone(), error)),
            }
        }
        Ok(self)
    }

    /// Writes the claim down unless it conflicts with another one.
    fn write(&mut self) -> io::Result<Option<Conflict>> {
        fs::create_dir_all(&self.folder)?;
        let all = open(&self.folder.join(LOCK))?;
        all.lock()?;
        self.others.clear();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let own = self.held.as_ref().is_some_and(|(held, _)| *held == path);
            if own || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if is_over(&path)? {
                fs::remove_file(&path)?;
                continue;
            }
            let Some(other) = Claim::parse(&bounded::read(&path, bounded::SETTINGS)?) else { continue };
            if let Some(what) = self.claim.conflict(&other) {
                return Ok(Some(Conflict { what, other: Some(other) }));
            }
            self.others.push(other);
        }
        let networks: Vec<Prefix> = self.claim.prefixes().collect();
        if let Some(what) = self.names.take(&networks, &self.claim.devices)? {
            return Ok(Some(Conflict { what, other: None }));
        }
        if self.held.is_none() {
            // Two containers can have processes of one number.
            let number = (0..).find(|number| !self.file(*number).exists()).unwrap_or(0);
            let path = self.file(number);
            let file = open(&path)?;
            file.lock()?;
            self.held = Some((path, file));
        }
        if let Some((_, file)) = &mut self.held {
            file.set_len(0)?;
            io::Seek::rewind(file)?;
            file.write_all(&serde_json::to_vec(&self.claim).map_err(io::Error::other)?)?;
        }
        Ok(None)
    }

    fn file(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{}-{number}.json", self.claim.process))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.held {
            let _ = fs::remove_file(path);
        }
    }
}

fn refused(conflict: &Conflict) -> anyhow::Error {
    anyhow!(
        "{conflict}: one network on a host has one daemon; a second network needs --etcd-prefix, --subnet-file, Network and \
         VNI of its own"
    )
}

fn absolute(path: &Path) -> PathBuf {
    normal(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// True when nobody holds the file: its daemon has ended.
fn is_over(path: &Path) -> io::Result<bool> {
    match open(path)?.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn unnoticed(folder: &Path, error: io::Error) -> anyhow::Error {
    let root = if error.kind() == io::ErrorKind::PermissionDenied { "run netd as root, and " } else { "" };
    anyhow::Error::new(error).context(format!(
        "no claim in {}, without which a second netd on this host would not be noticed: {root}make the folder writable, in \
         a container by mounting the host's /run/netd",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(file: &str, network: &str, device: Option<&str>) -> Claim {
        Claim {
            process: 1,
            subnet_file: file.into(),
            run_dir: format!("/run/netd/{file}").into(),
            networks: vec![network.to_owned()],
            devices: device.map(str::to_owned).into_iter().collect(),
        }
    }

    #[test]
    fn daemons_get_along_that_share_nothing() {
        let first = claim("a", "172.7.0.0/16", Some("flannel.1"));
        let conflict = |other: Claim| other.conflict(&first);
        assert_eq!(conflict(claim("b", "10.5.0.0/16", Some("flannel.2"))), None);
        assert_eq!(conflict(claim("b", "10.5.0.0/16", None)), None);
        assert_eq!(conflict(claim("a", "10.5.0.0/16", None)).unwrap(), "subnet file a");
        assert_eq!(conflict(claim("b", "172.7.0.0/16", None)).unwrap(), "Pod network 172.7.0.0/16");
        assert_eq!(
            conflict(claim("b", "172.7.128.0/17", None)).unwrap(),
            "Pod network 172.7.0.0/16, which overlaps 172.7.128.0/17"
        );
        assert_eq!(conflict(claim("b", "10.5.0.0/16", Some("flannel.1"))).unwrap(), "device flannel.1");
    }

    #[test]
    fn who_is_not_root_reads_that_he_must_be() {
        let said = |kind: io::ErrorKind| format!("{:#}", unnoticed(Path::new("/run/netd/claims"), kind.into()));
        assert!(said(io::ErrorKind::PermissionDenied).contains("run netd as root, and make the folder writable"));
        assert!(!said(io::ErrorKind::ReadOnlyFilesystem).contains("root"));
    }

    #[test]
    fn a_cleanup_speaks_of_a_daemon_that_runs_only_where_one_does() {
        let folder = PathBuf::from("/run/netd/claims");
        let denied = Refusal::Unknown(folder, io::ErrorKind::PermissionDenied.into()).of_a_cleanup();
        let said = format!("{denied:#}");
        assert!(said.contains("not known") && said.contains("run this as root") && !said.contains("stop it"), "{said}");
        let other = Some(claim("/run/flannel/subnet.env", "172.7.0.0/16", None));
        let held = Refusal::Held(Box::new(Conflict { what: "subnet file /run/flannel/subnet.env".to_owned(), other }));
        let said = format!("{:#}", held.of_a_cleanup());
        assert!(said.starts_with("a daemon runs and would put everything back: stop it first: subnet file"), "{said}");
        assert!(!said.contains("second network"), "{said}");
    }

    #[test]
    fn claim_ends_with_its_daemon_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = |file: &str| Claimed {
            claim: claim(file, "172.7.0.0/16", None),
            folder: folder.path().to_owned(),
            held: None,
            names: Names::of_test("claims"),
            others: Vec::new(),
        };
        let mut first = claimed("a");
        assert_eq!(first.write().unwrap(), None);
        assert_eq!(first.write().unwrap(), None, "again, with more");
        let conflict = claimed("b").write().unwrap().unwrap();
        assert_eq!(conflict.other.as_ref().map(|other| other.subnet_file.as_path()), Some(Path::new("a")));
        let said = conflict.to_string();
        assert!(said.starts_with("Pod network 172.7.0.0/16 belongs to the netd with process 1 already"), "{said}");
        assert!(said.contains("in a container: `ss -xlp` on the host names its process"), "that is no netd: {said}");
        drop(first);
        let mut second = claimed("b");
        assert_eq!(second.write().unwrap(), None);
        // Killed: the file stays, the lock does not.
        let (path, file) = second.held.take().unwrap();
        drop((file, std::mem::replace(&mut second.names, Names::of_test("nothing"))));
        assert!(path.exists());
        assert_eq!(claimed("a").write().unwrap(), None);
        assert!(!path.exists() || fs::read_dir(folder.path()).unwrap().count() <= 2);
    }

    #[test]
    fn second_daemon_that_sees_other_files_is_refused_and_so_is_one_that_cannot_claim() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let claimed = |folder: &Path| Claimed {
            claim: claim("a", "172.7.0.0/16", Some("flannel.1")),
            folder: folder.to_owned(),
            held: None,
            names: Names::of_test("containers"),
            others: Vec::new(),
        };
        let first = claimed(folders[0].path()).renew(1).unwrap();
        let error = format!("{:#}", claimed(folders[1].path()).renew(1).unwrap_err().of_a_daemon());
        assert!(error.starts_with("Pod network 172.7.0.0/16 belongs already to a netd in this network"), "{error}");
        drop(first);
        claimed(folders[1].path()).renew(1).unwrap();
        let file = folders[0].path().join("no-folder");
        fs::write(&file, "").unwrap();
        let error = format!("{:#}", claimed(&file).renew(1).unwrap_err().of_a_daemon());
        assert!(error.contains("no-folder, without which a second netd"), "{error}");
    }
}
