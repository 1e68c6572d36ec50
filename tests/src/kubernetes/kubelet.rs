//! A real kubelet on a machine of the lab whose container runtime runs.
//!
//! Invariant: nothing of the real machine changes. The kubelet reads control groups through mounts that cannot be written, makes none
//! (`cgroupsPerQOS: false`), and the kernel settings that it wants for a whole machine are files over those of `/proc/sys`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::api_server::ApiServer;
use crate::host::Host;
use crate::lab_kernel;
use crate::process::Process;

/// What it writes at its start, with the values that it wants.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Where Pods look names up.
const DNS: &str = "192.168.0.2";

/// Options of a mount that name no controller.
const OF_ANY_MOUNT: [&str; 7] = ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime"];

/// A kubelet that runs.
#[derive(Debug)]
pub struct Kubelet {
    process: Process,
    host: Host,
    program: PathBuf,
}

impl Kubelet {
    /// Starts it as the Node of the machine's name, on containerd's socket.
    ///
    /// # Errors
    /// When the machine has no address, or the kubelet cannot be started.
    pub fn start(server: &ApiServer, host: &Host) -> Result<Self> {
        show_control_groups(host)?;
        for (name, value) in SETTINGS {
            let file = format!("/run/kubelet/sys/{}", name.replace('/', "_"));
            host.write(&file, value)?;
            host.run(&["mount", "--bind", &file, &format!("/proc/sys/{name}")])?;
        }
        show_clock(host)?;
        let kubeconfig = server.kubeconfig_of(&format!("system:node:{}", host.name()), &["system:nodes"])?;
        host.write("/run/kubelet/kubeconfig", kubeconfig.to_string())?;
        let configuration = configuration(server.flags.iter().any(|flag| flag.contains("IPv6DualStack=true")));
        host.write("/run/kubelet/config", configuration.to_string())?;
        let program = server.programs().join("kubelet");
        Ok(Self { process: launch(host, &program)?, host: host.clone(), program })
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Starts it again where it has ended.
    ///
    /// # Errors
    /// As [`Kubelet::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.process = launch(&self.host, &self.program)?;
        Ok(())
    }
}

fn launch(host: &Host, program: &Path) -> Result<Process> {
    let command = host.command(program).args([
        "--config=/run/kubelet/config",
        "--kubeconfig=/run/kubelet/kubeconfig",
        "--container-runtime=remote",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
        &format!("--hostname-override={}", host.name()),
        &format!("--node-ip={}", host.address()?),
    ]);
    command.start("kubelet")
}

/// Shows the machine the control groups of the real one, for reading.
fn show_control_groups(host: &Host) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mut script = "mount -t tmpfs tmpfs /sys/fs/cgroup\n".to_owned();
    let of = |line: &str| -> Option<(String, String, String)> {
        let mut words = line.split(' ').skip(1).map(str::to_owned);
        Some((words.next()?, words.next()?, words.next()?))
    };
    let all: Vec<_> = mounts.lines().filter_map(of).filter(|(path, ..)| path.starts_with("/sys/fs/cgroup")).collect();
    // A machine with both versions is shown the first alone: containers of the second need a hierarchy that can be written.
    let version = if all.iter().any(|(_, kind, _)| kind == "cgroup") { "cgroup" } else { "cgroup2" };
    for (path, kind, options) in all.iter().filter(|(_, kind, _)| kind == version) {
        let controllers = options.split(',').filter(|option| kind == "cgroup" && !OF_ANY_MOUNT.contains(option));
        let controllers = controllers.fold(String::new(), |all, each| format!("{all} -o {each}"));
        script +=
            &format!("mkdir -p {path}\nmount -t {kind}{controllers} none {path}\nmount -o remount,bind,ro {path}\n");
    }
    host.run(&["bash", "-euc", &script]).map(drop)
}

/// Names the processor's speed where the kernel does not: a kubelet ends without it, and the lab kernel has no such line.
fn show_clock(host: &Host) -> Result<()> {
    let script = "grep -q '^cpu MHz' /proc/cpuinfo && exit; { cat /proc/cpuinfo; echo 'cpu MHz : 1000.000'; } >/run/kubelet/cpuinfo; \
        mount --bind /run/kubelet/cpuinfo /proc/cpuinfo";
    host.run(&["bash", "-ec", script]).map(drop)
}

fn configuration(is_dual: bool) -> serde_json::Value {
    // What it does every second or two is most of what the one processor of the lab kernel can do.
    let is_slow = lab_kernel::is_inside();
    let heartbeats = if is_slow { ("10s", 40, "5s") } else { ("2s", 8, "1s") };
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "resolvConf": "/etc/resolv.conf",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "volumePluginDir": "/var/lib/kubelet/plugins",
        "featureGates": {"IPv6DualStack": is_dual},
        "nodeStatusUpdateFrequency": heartbeats.0,
        "nodeLeaseDurationSeconds": heartbeats.1,
        "syncFrequency": heartbeats.2,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "eventRecordQPS": 100,
        "eventBurst": 200,
    })
}
