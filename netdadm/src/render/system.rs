//! What the kernel and the resolver of a host are asked for: modules, parameters, names of the other hosts.
//!
//! Invariant: a parameter stands here only if a component needs it; /etc/hosts is written only when the topology says so,
//! whole, because a file that somebody else writes as well has no owner.

use std::fmt::Write as _;

use super::tree::Start;
use super::unit::MADE;
use super::{Place, Tree};
use crate::topology::{Backend, Role};

/// Modules to load at boot.
const MODULES: &str = "/etc/modules-load.d/netdadm.conf";

/// Parameters of the kernel, behind those of packages.
const PARAMETERS: &str = "/etc/sysctl.d/90-netdadm.conf";

/// What the network of Pods needs, the kubelet (which stops with `protectKernelDefaults` where they differ) and many Pods.
const VALUES: [(&str, &str); 11] = [
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
    ("net.ipv4.ip_forward", "1"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("fs.inotify.max_user_instances", "8192"),
    ("fs.inotify.max_user_watches", "524288"),
];

/// Adds what this host needs.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    if place.topology.deviations.etc_hosts {
        tree.file("/etc/hosts", hosts(place));
    }
    if let Some(modules) = modules(place) {
        tree.file(MODULES, modules);
        // A module that the kernel has inside makes the unit fail, and nothing is missing.
        tree.started("systemd-modules-load.service", vec![MODULES.into()], Start::alone());
    }
    if !place.host.has(Role::Node) {
        return;
    }
    tree.file(PARAMETERS, parameters(place));
    tree.started("systemd-sysctl.service", vec![PARAMETERS.into()], Start::alone());
}

/// Those of netd alone where there are no Pods.
fn modules(place: &Place<'_>) -> Option<String> {
    let tunnel = match place.topology.pods.backend.value {
        Backend::Vxlan => "vxlan\n",
        Backend::HostGw => "",
        Backend::Wireguard => "wireguard\n",
    };
    let (is_node, has_netd) = (place.host.has(Role::Node), place.topology.has_netd(place.host));
    let pods = if is_node { "overlay\nbr_netfilter\nnf_conntrack\nip_vs\nip_vs_rr\n" } else { "" };
    (is_node || has_netd && !tunnel.is_empty()).then(|| format!("{MADE}{pods}{tunnel}"))
}

fn parameters(place: &Place<'_>) -> String {
    let mut text = MADE.to_owned();
    for (name, value) in VALUES {
        // Writing into a text does not fail.
        let _ = writeln!(text, "{name} = {value}");
    }
    if place.topology.networks.pods.iter().any(|network| !network.value.is_ipv4()) {
        text += "net.ipv6.conf.all.forwarding = 1\n";
    }
    text
}

fn hosts(place: &Place<'_>) -> String {
    let mut text = format!(
        "{MADE}127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    );
    let topology = place.topology;
    for host in &topology.hosts {
        let name = &host.name.value;
        // A name that is an address needs no resolver.
        if name.parse::<std::net::IpAddr>().is_ok() {
            continue;
        }
        let names = match &topology.domain {
            Some(domain) if !name.contains('.') => format!("{name}.{} {name}", domain.value),
            _ => name.clone(),
        };
        for address in &host.addresses {
            let _ = writeln!(text, "{} {names}", address.value);
        }
    }
    text
}
