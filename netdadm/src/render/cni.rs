//! The network of Pods as the runtime finds it: the list of plugins, and a unit that puts the plugin into its folder.
//!
//! Invariant: the list is of a version that the runtime reads.

use super::tree::Start;
use super::unit::{INSTALL, MADE};
use super::{Place, Tree, containerd};
use crate::topology::{Program, Version};

/// The list of plugins that the project ships.
const LIST: &str = include_str!("../../../configs/cni/10-netd.conflist");

/// What it says of its version.
const VERSIONS: &str = "  \"cniVersion\": \"1.0.0\",\n  \"cniVersions\": [\"1.0.0\", \"1.1.0\"],\n";

/// Runtimes before these read no list of 1.0.0.
const READ_BY: Version = Version::new(1, 6, 0);

/// Adds both.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let older = place.containerd().is_none_or(|version| version < READ_BY);
    let list = if older { LIST.replace(VERSIONS, "  \"cniVersion\": \"0.4.0\",\n") } else { LIST.to_owned() };
    tree.file(format!("{}/10-netd.conflist", containerd::NETWORKS), list);
    let program = place.program(Program::Netd, "netd-cni");
    let folder = containerd::PLUGINS;
    let text = format!(
        "{MADE}[Unit]\nDescription=Plugin of the Pod network in {folder}\n\
         Before=kubelet.service\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         ExecStart=/bin/mkdir -p {folder}\nExecStart={program} install --as netd-cni,loopback {folder}\n{INSTALL}"
    );
    tree.unit("netd-cni.service", text, &[], Start::waited());
}
