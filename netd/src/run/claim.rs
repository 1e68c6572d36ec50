//! What a daemon takes for itself on this host, so that no second one takes it as well.
//!
//! Each running daemon has a file that it holds a lock on, which ends with the process in whatever way that ends, and
//! that says what is its own. Invariants: two daemons never hold one subnet file, folder, tunnel device or overlapping
//! Pod networks; the one that comes second changes nothing and names the first. Nobody but root can read or lock the files.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use netstate::{IfName, Prefix};
use serde::{Deserialize, Serialize};

use crate::command::instance::normal;

/// Where all daemons of this host look, whatever their flags say.
const FOLDER: &str = "/run/netd/claims";

/// File that is locked while the others are read.
const LOCK: &str = "lock";

/// Tries before a daemon that ends counts as one that runs.
const TRIES: u32 = 20;

/// Pause between them.
const PAUSE: Duration = Duration::from_millis(100);

/// What one daemon has for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// Its process.
    pub(super) process: u32,
    /// File by which it informs the plugin.
    pub(super) subnet_file: PathBuf,
    /// Folder of its run-time files.
    pub(super) run_dir: PathBuf,
    /// Its Pod networks, once they are known.
    #[serde(default)]
    pub(super) networks: Vec<String>,
    /// Its tunnel devices, once they are known.
    #[serde(default)]
    pub(super) devices: Vec<String>,
}

impl Claim {
    fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.networks.iter().filter_map(|text| text.parse().ok())
    }

    /// What both claim; `None` when they get along.
    fn conflict(&self, other: &Self) -> Option<String> {
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

/// The claim of this daemon; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Claimed {
    claim: Claim,
    folder: PathBuf,
    held: Option<(PathBuf, File)>,
    /// Claims of the other daemons that run.
    others: Vec<Claim>,
}

impl Claimed {
    /// Claims what the flags name.
    ///
    /// # Errors
    /// When another daemon has it.
    pub(crate) fn take(subnet_file: &Path, run_dir: &Path) -> Result<Self> {
        let claim = Claim {
            process: std::process::id(),
            subnet_file: absolute(subnet_file),
            run_dir: absolute(run_dir),
            ..Claim::default()
        };
        Self { claim, folder: PathBuf::from(FOLDER), held: None, others: Vec::new() }.renew(TRIES)
    }

    /// Claims the Pod networks and the devices as well, before anything of them is touched.
    ///
    /// # Errors
    /// When another daemon has one of them.
    pub(super) fn extend(
        mut self,
        networks: impl IntoIterator<Item = Prefix>,
        devices: impl IntoIterator<Item = IfName>,
    ) -> Result<Self> {
        self.claim.networks = networks.into_iter().map(|network| network.to_string()).collect();
        self.claim.devices = devices.into_iter().map(|device| device.to_string()).collect();
        self.renew(1)
    }

    /// Claims these devices as well, while the daemon runs.
    ///
    /// # Errors
    /// When another daemon has one of them; then the claim stays as it was.
    pub(super) fn take_devices(&mut self, devices: impl IntoIterator<Item = IfName>) -> Result<()> {
        let before = self.claim.devices.clone();
        self.claim.devices.extend(devices.into_iter().map(|device| device.to_string()));
        self.claim.devices.sort_unstable();
        self.claim.devices.dedup();
        match self.write() {
            Ok(None) => Ok(()),
            Ok(Some((other, what))) => {
                self.claim.devices = before;
                bail!("{what} belongs to the netd with process {} already", other.process)
            }
            Err(error) => {
                tracing::warn!(%error, "a second daemon on this host would not be noticed");
                Ok(())
            }
        }
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

    fn renew(mut self, most: u32) -> Result<Self> {
        for tries in 1.. {
            match self.write() {
                Ok(None) => break,
                // A daemon that is being replaced may take a moment to end.
                Ok(Some(_)) if tries < most => std::thread::sleep(PAUSE),
                Ok(Some((other, what))) => bail!(
                    "{what} belongs to the netd with process {} already (subnet file {}, run-time folder {}): one network \
                     on a host has one daemon; a second network needs --etcd-prefix, --subnet-file, Network and VNI of \
                     its own",
                    other.process,
                    other.subnet_file.display(),
                    other.run_dir.display()
                ),
                Err(error) => {
                    let folder = self.folder.display();
                    tracing::warn!(%folder, %error, "a second daemon on this host would not be noticed");
                    break;
                }
            }
        }
        Ok(self)
    }

    /// Writes the claim down unless it conflicts; then returns the other one and what both claim.
    fn write(&mut self) -> io::Result<Option<(Claim, String)>> {
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
            let Ok(other) = serde_json::from_slice::<Claim>(&fs::read(&path)?) else { continue };
            if let Some(what) = self.claim.conflict(&other) {
                return Ok(Some((other, what)));
            }
            self.others.push(other);
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
    fn claim_ends_with_its_daemon_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = |file: &str| Claimed {
            claim: claim(file, "172.7.0.0/16", None),
            folder: folder.path().to_owned(),
            held: None,
            others: Vec::new(),
        };
        let mut first = claimed("a");
        assert_eq!(first.write().unwrap(), None);
        assert_eq!(first.write().unwrap(), None, "again, with more");
        let (other, what) = claimed("b").write().unwrap().unwrap();
        assert_eq!((other.subnet_file.to_str().unwrap(), what.as_str()), ("a", "Pod network 172.7.0.0/16"));
        drop(first);
        let mut second = claimed("b");
        assert_eq!(second.write().unwrap(), None);
        // Killed: the file stays, the lock does not.
        let (path, file) = second.held.take().unwrap();
        drop(file);
        assert!(path.exists());
        assert_eq!(claimed("a").write().unwrap(), None);
        assert!(!path.exists() || fs::read_dir(folder.path()).unwrap().count() <= 2);
    }
}
