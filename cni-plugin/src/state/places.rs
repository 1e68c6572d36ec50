//! Where the state of a network is kept on this node.
//!
//! DEL and GC need to know that and nothing else: it is found in whatever can be read of a configuration, because a node
//! must be able to clean up after one that was broken meanwhile. Invariant: every name finds what every other name keeps: a
//! list of plugins changes while Pods run.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::records::{Class, Records};
use super::reservations::{Pools, Store};
use super::safe_file::{self, Links};
use crate::protocol::attachment::ContainerId;
use crate::protocol::fields::Fields;
use crate::protocol::netconf::{DEFAULT_STATE_DIR, NetConf, flannel, ipam};

/// The most that is read of a state file of flannel's, in bytes.
const FLANNEL_STATE_MAX: u64 = 64 * 1024;

/// The directories of one network's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The network's name.
    pub network: String,
    /// Directories with a directory of reservations for the network.
    pub data_dirs: Vec<PathBuf>,
    /// Where records are.
    state_dir: PathBuf,
    /// Directory of flannel's state files; `None` where there is none, or behind a symbolic link: ADD keeps nothing there.
    pub flannel_dir: Option<PathBuf>,
}

impl Places {
    /// Finds them in `conf`, whatever else is wrong there, and in flannel's state file of `container`.
    #[must_use]
    pub fn of(conf: &NetConf, container: Option<&ContainerId>) -> Self {
        let mut fields = conf.fields.clone();
        let text = |fields: &mut Fields, key: &str| fields.take_text(key).ok().flatten().filter(|t| !t.is_empty());
        let dir = |text: Option<String>, default: &str| PathBuf::from(text.as_deref().unwrap_or(default));
        let state_dir = dir(text(&mut fields, "stateDir"), DEFAULT_STATE_DIR);
        let flannel = dir(text(&mut fields, "dataDir"), flannel::DEFAULT_DATA_DIR);
        let ipam_dir = fields.take_object("ipam").ok().flatten().and_then(|mut ipam| text(&mut ipam, "dataDir"));
        let mut data_dirs = vec![dir(ipam_dir, ipam::DEFAULT_DATA_DIR)];
        let flannel_dir = Some(flannel).filter(|dir| safe_file::is_own_directory(dir));
        let stored = flannel_dir.as_ref().zip(container).and_then(|(dir, id)| stored_data_dir(&dir.join(id.as_str())));
        data_dirs.extend(stored.filter(|dir| !data_dirs.contains(dir)));
        // The network may have had another one when its Pods came.
        let known = data_dirs.first().map(|own| Pools::of(&state_dir).tops(own)).unwrap_or_default();
        data_dirs.extend(known.into_iter().filter(|dir| !data_dirs.contains(dir)).collect::<Vec<_>>());
        Self { network: conf.name.clone(), data_dirs, state_dir, flannel_dir }
    }

    /// What is known of other data directories.
    #[must_use]
    pub(crate) fn pools(&self) -> Pools {
        Pools::of(&self.state_dir)
    }

    /// The records of `class`; of [`Class::Grant`] see [`Places::leases`].
    #[must_use]
    pub fn records(&self, class: Class) -> Records {
        Records::new(class, &self.state_dir, &self.network)
    }

    /// The network's reservations, each directory with the records of what `host-local` gave out of it.
    pub fn leases(&self) -> impl Iterator<Item = (Store, Records)> {
        let network = &self.network;
        self.data_dirs.iter().map(move |dir| (Store::new(dir, network), Records::new(Class::Grant, dir, network)))
    }

    /// flannel's state file of `container`, and what it is called until it is whole. There is one for a container, whatever
    /// interfaces it has: that of another network is not this one's.
    pub fn flannel_files(&self, container: &ContainerId) -> impl Iterator<Item = PathBuf> {
        let files = |dir: &PathBuf| [dir.join(container.as_str()), flannel_draft(dir, container)];
        let is_others = |path: &PathBuf| stored_network(path).is_some_and(|name| name != self.network);
        self.flannel_dir.iter().flat_map(files).filter(move |path| !is_others(path))
    }
}

/// The network that flannel's plugin, or this one, wrote the state file at `path` for; `None` where it does not say.
pub(crate) fn stored_network(path: &Path) -> Option<String> {
    stored(path)?.get("name").and_then(Value::as_str).map(str::to_owned)
}

fn stored(path: &Path) -> Option<Value> {
    let text = safe_file::read(path, FLANNEL_STATE_MAX, Links::Refused).ok()?;
    serde_json::from_str(&text).ok()
}

/// Where the state file of `container` is written before it gets its name.
#[must_use]
pub(crate) fn flannel_draft(dir: &Path, container: &ContainerId) -> PathBuf {
    dir.join(format!(".{container}"))
}

/// `ipam.dataDir` of a delegate that flannel's plugin stored: the configuration may have changed since.
fn stored_data_dir(path: &Path) -> Option<PathBuf> {
    let mut ipam = Fields::of(stored(path)?, "").ok()?.take_object("ipam").ok()??;
    ipam.take_text("dataDir").ok()?.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}
