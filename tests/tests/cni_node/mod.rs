//! Nodes of the reference cluster with netd and the installed plugin, for a real container runtime to work on.
//!
//! Invariant: a runtime's configuration, storage and state lie in the machine's own copy-on-write folders and end with the
//! machine. It gets no control groups: the machine shows it an empty `/sys/fs/cgroup`, so nothing of the real one is touched.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod image;
pub(crate) mod likeness;
pub(crate) mod ours;
pub(crate) mod podman;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::harness::Suite;
use lab::{Absent, Host, Need, Process};
use serde_json::Value;

use crate::netd_node::{Net, VXLAN};

/// flannel's stock list: `flannel` with `portmap` chained behind it.
pub(crate) const STOCK: &str = include_str!("../../../configs/cni/10-flannel.conflist");
/// One entry that does all of it.
pub(crate) const NATIVE: &str = include_str!("../../../configs/cni/10-netd.conflist");

/// A suite of runtimes: inside the lab kernel, where system calls cost ten times more, a test of theirs takes minutes.
pub(crate) fn suite(obstacle: Option<impl Into<Absent>>) -> Suite {
    Suite::new(&[Need::Vxlan, Need::Nftables]).limit(Duration::from_secs(40 * 60)).unless(obstacle)
}

/// Why programs of these names cannot be run here; `None` when all of them are installed.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !is_there(program)).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}; run `tests/setup run`", missing.join(", ")))
}

/// The reference cluster with netd on both nodes.
pub(crate) struct Nodes {
    pub(crate) net: Net,
    _netd: [Process; 2],
}

impl Nodes {
    /// Starts it; node hdss7-21 gets the first list, hdss7-22 the second.
    pub(crate) fn start(lists: [&str; 2]) -> Result<Self> {
        let net = Net::start(VXLAN)?;
        let netd = net.both()?;
        for (node, list) in ["hdss7-21", "hdss7-22"].into_iter().zip(lists) {
            furnish(net.host(node)?, list)?;
        }
        Ok(Self { net, _netd: netd })
    }

    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.net.host(name)
    }
}

/// A machine that is the node hdss7-21 on its own, without netd: it has the subnet file.
pub(crate) fn lone_node(list: &str) -> Result<Host> {
    let host = Host::start("hdss7-21.host.com")?;
    host.write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    furnish(&host, list)?;
    Ok(host)
}

/// Installs the plugin as on a node that needs no other plugin package, and what runtimes expect of a machine.
pub(crate) fn furnish(host: &Host, list: &str) -> Result<()> {
    install(host, list)?;
    show_empty_folders(host)
}

/// Installs the plugin, with this list.
pub(crate) fn install(host: &Host, list: &str) -> Result<()> {
    fs::create_dir_all(host.path("/opt/cni/bin")).context("make /opt/cni/bin")?;
    let install = host.command(lab::bin("netd-cni")?);
    install.args(["install", "--as", "flannel,portmap,loopback", "/opt/cni/bin"]).run()?;
    // The list that Debian's podman brings would be a second network.
    host.run(&["sh", "-c", "rm -f /etc/cni/net.d/*"])?;
    configure(host, list)
}

/// Folders in which runtimes find nothing of the real machine; locks of podman lie in `/dev/shm`.
pub(crate) fn show_empty_folders(host: &Host) -> Result<()> {
    ["/sys/fs/cgroup", "/dev/shm"]
        .iter()
        .try_for_each(|folder| host.run(&["mount", "-t", "tmpfs", "tmpfs", folder]).map(drop))
}

/// Makes `list` the machine's only network.
pub(crate) fn configure(host: &Host, list: &str) -> Result<()> {
    host.write("/etc/cni/net.d/10-cbr0.conflist", list)
}

/// A program that writes its call to `/run/calls`, one JSON object a line, and becomes the plugin of its own name.
const RECORDER: &str = r#"#!/bin/bash
input=$(cat)
printf '{"env":{"COMMAND":"%s","CONTAINERID":"%s","NETNS":"%s","IFNAME":"%s","ARGS":"%s","PATH":"%s"},"stdin":%s}\n' "$CNI_COMMAND" \
  "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$input" >>/run/calls
exec "/opt/cni/bin/recorded/${0##*/}" <<<"$input"
"#;

/// Puts a recorder before these plugins.
pub(crate) fn record(host: &Host, plugins: &[&str]) -> Result<()> {
    let folder = host.path("/opt/cni/bin");
    fs::create_dir(folder.join("recorded")).context("make the folder of the recorded plugins")?;
    for plugin in plugins {
        fs::rename(folder.join(plugin), folder.join("recorded").join(plugin))
            .with_context(|| format!("move {plugin}"))?;
        host.write(format!("/opt/cni/bin/{plugin}"), RECORDER)?;
        fs::set_permissions(folder.join(plugin), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The calls that recorders saw since the last question.
pub(crate) fn calls(host: &Host) -> Result<Vec<Value>> {
    let text = host.read("/run/calls")?;
    fs::remove_file(host.path("/run/calls"))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Everything on the machine that belongs to one container or another: host ends of veth pairs, namespace files, rows of
/// the firewall's tables, state of the plugin and libcni's cache. What belongs to the network (its bridge, its tables without
/// rows, locks, the memory of the last address) is left out.
pub(crate) fn leftovers(host: &Host) -> Result<Vec<String>> {
    let script = "ip -br link show type veth | cut -d' ' -f1 | grep -v ^eth0\n\
        ip -br link show type ifb 2>/dev/null | cut -d' ' -f1\n\
        find /run/netns -type f -o -type s\n\
        for table in $(nft list tables inet | grep -o 'netd-ports.*'); do nft list table inet $table | sed -n '/elements = {/,/}/p'; done\n\
        find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip.*' 2>/dev/null\n\
        bridge fdb show | grep -v permanent | grep veth\n\
        exit 0";
    Ok(host.run(&["bash", "-c", script])?.stdout.lines().map(str::to_owned).collect())
}

/// Requires that nothing of any container is on the machine.
pub(crate) fn ensure_clean(host: &Host) -> Result<()> {
    let left = leftovers(host)?;
    ensure!(left.is_empty(), "left on {}: {left:#?}", host.name());
    Ok(())
}

/// What the image's server at `url` answers to this machine: `ADDRESS NAME`, the address it saw and its host name.
pub(crate) fn ask(host: &Host, url: &str) -> Result<String> {
    let output = host.run(&["curl", "-gsS", "--max-time", "5", &format!("http://{url}/cgi-bin/who")])?;
    image::answer(&output.stdout)
}
