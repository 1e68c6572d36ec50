//! kube-controller-manager: one beside each API server, of which one leads.
//!
//! Invariant: it gives Nodes their Pod networks only where nobody else does: `spec.podCIDR` is never changed again.

use netstate::family::IpFamily;

use super::flags::Flags;
use super::tree::Start;
use super::unit::{self, CONFINED, INSTALL, RESTART};
use super::{KUBERNETES, PKI, Place, Tree};
use crate::topology::{Component, Program, Purpose};

/// Bits of a node's IPv6 subnet, as netd has it.
const SUBNET6: u8 = 64;

/// Adds the controller-manager of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let config = format!("{KUBERNETES}/controller-manager.conf");
    let authority = format!("{PKI}/ca.crt");
    let key = format!("{PKI}/sa.key");
    let start = start(place, Purpose::ControllerManager);
    tree.unit("kube-controller-manager.service", unit(place, &config), &[&config, &authority, &key], start);
}

/// How a manager says that it serves, under the certificate of [`serve`].
pub(super) fn start(place: &Place<'_>, purpose: Purpose) -> Start {
    let authority = format!("{PKI}/ca.crt");
    let start = Start::waited_if(super::has_quorum(place.topology, place.host));
    start.until(format!("https://{}/healthz", place.loopback(purpose)), Some(&authority), 120)
}

/// A manager serves loopback with the certificate of the API server beside it; one that it made itself nobody could check.
pub(super) fn serve(place: &Place<'_>, purpose: Purpose, flags: &mut Flags) {
    flags.set("bind-address", "127.0.0.1");
    flags.set("secure-port", place.port(purpose));
    flags.set("tls-cert-file", format!("{PKI}/apiserver.crt"));
    flags.set("tls-private-key-file", format!("{PKI}/apiserver.key"));
}

fn unit(place: &Place<'_>, config: &str) -> String {
    format!(
        "{head}Type=exec\nExecStart={program}{flags}\n{RESTART}{CONFINED}{INSTALL}",
        head = unit::head("Controllers of Kubernetes", " kube-apiserver.service", true),
        program = place.program(Program::Kubernetes, "kube-controller-manager"),
        flags = flags(place, config),
    )
}

fn flags(place: &Place<'_>, config: &str) -> Flags {
    let file = |name: &str| format!("{PKI}/{name}");
    let mut flags = Flags::default();
    serve(place, Purpose::ControllerManager, &mut flags);
    if !place.since(24) {
        // Port 10252 asks nobody who he is; later versions do not know the flag.
        flags.set("port", 0);
    }
    flags.set("kubeconfig", config);
    flags.set("authentication-kubeconfig", config);
    flags.set("authorization-kubeconfig", config);
    flags.set("client-ca-file", file("ca.crt"));
    flags.set("requestheader-client-ca-file", file("front-proxy-ca.crt"));
    flags.set("root-ca-file", file("ca.crt"));
    flags.set("service-account-private-key-file", file("sa.key"));
    flags.set("use-service-account-credentials", true);
    flags.set("leader-elect", true);
    subnets(place, &mut flags);
    flags.deviate(place.topology, Component::ControllerManager);
    flags
}

fn subnets(place: &Place<'_>, flags: &mut Flags) {
    // netd leases by the nodes' addresses.
    if place.leases_in_etcd() {
        flags.set("allocate-node-cidrs", false);
        return;
    }
    flags.set("allocate-node-cidrs", true);
    flags.set("cluster-cidr", place.pods());
    flags.set("service-cluster-ip-range", place.services());
    let length = place.topology.pods.subnet_length.value;
    let has = |family| place.topology.networks.pods.iter().any(|network| network.value.family() == family);
    match (has(IpFamily::V4), has(IpFamily::V6)) {
        (true, true) => {
            flags.set("node-cidr-mask-size-ipv4", length);
            flags.set("node-cidr-mask-size-ipv6", SUBNET6);
        }
        (false, true) => flags.set("node-cidr-mask-size", SUBNET6),
        _ => flags.set("node-cidr-mask-size", length),
    }
}
