//! containerd as the kubelet uses it: where plugins and networks are, the image of sandboxes, the driver of control groups.
//!
//! Invariant: the file is of the version that its containerd reads, and says everything of a plugin's table that it names.

use super::tree::Start;
use super::unit::{INSTALL, MADE};
use super::{Place, Tree};
use crate::topology::{Program, Version};

/// Where it serves.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where plugins lie.
pub(super) const PLUGINS: &str = "/opt/cni/bin";
/// Where networks are.
pub(super) const NETWORKS: &str = "/etc/cni/net.d";

/// Its settings. The usual file is the package's, or of a cluster before: it stays as it is, and is not read.
pub(crate) const CONFIG: &str = "/etc/containerd/netdadm.toml";

/// Images of sandboxes by the first minor version of Kubernetes that has them, as kubeadm does.
const PAUSE: [(u32, &str); 7] =
    [(16, "3.1"), (18, "3.2"), (21, "3.4.1"), (22, "3.5"), (23, "3.6"), (24, "3.7"), (26, "3.9")];

/// Adds it where the kubelet has it.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let Some(version) = place.containerd() else { return };
    tree.file(CONFIG, config(place, version));
    tree.unit("containerd.service", unit(place), &[CONFIG], Start::waited());
}

/// The image that holds the namespaces of a Pod.
pub(super) fn pause(place: &Place<'_>) -> String {
    if let Some(image) = &place.topology.deviations.pause {
        return image.clone();
    }
    let found = PAUSE.iter().rev().find(|(minor, _)| place.since(*minor));
    format!("registry.k8s.io/pause:{}", found.map_or("3.1", |(_, version)| version))
}

fn config(place: &Place<'_>, version: Version) -> String {
    let pause = pause(place);
    let imports = "imports = [\"/etc/containerd/conf.d/*.toml\"]";
    let driver = place.topology.deviations.kubelet_scalar("cgroupDriver").is_none_or(|driver| driver == "systemd");
    if version >= Version::new(2, 0, 0) {
        let runtime = "plugins.'io.containerd.cri.v1.runtime'";
        return format!(
            "{MADE}version = 3\n{imports}\n\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\n  sandbox = \"{pause}\"\n\n\
             [{runtime}.cni]\n  bin_dir = \"{PLUGINS}\"\n  conf_dir = \"{NETWORKS}\"\n  max_conf_num = 1\n\n\
             [{runtime}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n\
             [{runtime}.containerd.runtimes.runc.options]\n  SystemdCgroup = {driver}\n"
        );
    }
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    format!(
        "{MADE}version = 2\n{imports}\n\n\
         [{cri}]\n  sandbox_image = \"{pause}\"\n\n\
         [{cri}.cni]\n  bin_dir = \"{PLUGINS}\"\n  conf_dir = \"{NETWORKS}\"\n  max_conf_num = 1\n\n\
         [{cri}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n\
         [{cri}.containerd.runtimes.runc.options]\n  SystemdCgroup = {driver}\n"
    )
}

fn unit(place: &Place<'_>) -> String {
    format!(
        "{MADE}[Unit]\nDescription=containerd\nAfter=network.target local-fs.target\n\
         StartLimitIntervalSec=0\n\n[Service]\nType=notify\nExecStart={program} --config {CONFIG}\n\
         Restart=always\nRestartSec=5s\n\
         # Pods go on while it is away.\nKillMode=process\nDelegate=yes\nOOMScoreAdjust=-999\n\
         LimitNPROC=infinity\nLimitCORE=infinity\nLimitNOFILE=infinity\nTasksMax=infinity\n{INSTALL}",
        program = place.program(Program::Containerd, "containerd"),
    )
}
