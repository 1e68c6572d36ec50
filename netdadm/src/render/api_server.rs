//! kube-apiserver: its flags by version, and its unit.
//!
//! Invariant: nothing is served without TLS; every key of it is another's than that of a client.

use super::flags::Flags;
use super::tree::Start;
use super::unit::{self, CONFINED, INSTALL, RESTART};
use super::{PKI, Place, Tree};
use crate::topology::{Component, Program, Purpose, Role};

/// What it is called in tokens; a change makes every token invalid.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Adds the API server of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let file = |name: &str| format!("{PKI}/{name}");
    let authority = file("ca.crt");
    // Its own certificate and the CAs of clients are read again when they change, those for etcd at the start.
    let mut restart = vec![file("etcd/ca.crt"), file("apiserver-etcd-client.crt"), file("sa.key"), file("sa.pub")];
    if !place.since(18) {
        restart.extend([file("apiserver.crt"), authority.clone(), file("front-proxy-ca.crt")]);
    }
    let restart: Vec<&str> = restart.iter().map(String::as_str).collect();
    let url = format!("https://{}/readyz", place.loopback(Purpose::ApiServer));
    let start = Start::waited_if(super::has_quorum(place.topology, place.host)).until(url, Some(&authority), 300);
    tree.unit("kube-apiserver.service", unit(place), &restart, start);
}

fn unit(place: &Place<'_>) -> String {
    format!(
        "{head}\
         # Without etcd it ends after 20 seconds, and is started again.\n\
         Type=notify\nTimeoutStartSec=300s\n\
         ExecStart={program}{flags}\n\
         # Open watches hold up its end, and nobody is served meanwhile: kubelets give kubeadm's as long.\n\
         TimeoutStopSec=30s\n\
         {RESTART}LimitNOFILE=65536\n{CONFINED}{INSTALL}",
        head = unit::head("API server of Kubernetes", " etcd.service", true),
        program = place.program(Program::Kubernetes, "kube-apiserver"),
        flags = flags(place),
    )
}

fn flags(place: &Place<'_>) -> Flags {
    let file = |name: &str| format!("{PKI}/{name}");
    let mut flags = Flags::default();
    flags.set("advertise-address", place.address);
    flags.set("bind-address", place.everywhere(Purpose::ApiServer).ip());
    flags.set("secure-port", place.port(Purpose::ApiServer));
    if !place.since(20) {
        // Port 8080 asks nobody who he is; later versions have none.
        flags.set("insecure-port", 0);
    }
    flags.set("etcd-servers", place.etcd_endpoints());
    flags.set("etcd-cafile", file("etcd/ca.crt"));
    flags.set("etcd-certfile", file("apiserver-etcd-client.crt"));
    flags.set("etcd-keyfile", file("apiserver-etcd-client.key"));
    flags.set("client-ca-file", file("ca.crt"));
    flags.set("tls-cert-file", file("apiserver.crt"));
    flags.set("tls-private-key-file", file("apiserver.key"));
    flags.set("kubelet-certificate-authority", file("ca.crt"));
    flags.set("kubelet-client-certificate", file("apiserver-kubelet-client.crt"));
    flags.set("kubelet-client-key", file("apiserver-kubelet-client.key"));
    // The usual order asks the DNS for the name first.
    flags.set("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname");
    flags.set("service-account-issuer", ISSUER);
    flags.set("service-account-key-file", file("sa.pub"));
    flags.set("service-account-signing-key-file", file("sa.key"));
    flags.set("service-cluster-ip-range", place.services());
    flags.set("authorization-mode", "Node,RBAC");
    flags.set("enable-admission-plugins", "NodeRestriction");
    flags.set("allow-privileged", true);
    flags.set("requestheader-client-ca-file", file("front-proxy-ca.crt"));
    flags.set("requestheader-allowed-names", "front-proxy-client");
    flags.set("requestheader-username-headers", "X-Remote-User");
    flags.set("requestheader-group-headers", "X-Remote-Group");
    flags.set("requestheader-extra-headers-prefix", "X-Remote-Extra-");
    flags.set("proxy-client-cert-file", file("front-proxy-client.crt"));
    flags.set("proxy-client-key-file", file("front-proxy-client.key"));
    if !place.host.has(Role::Node) {
        // Nobody leads from the addresses of Services to Pods here.
        flags.set("enable-aggregator-routing", true);
    }
    flags.deviate(place.topology, Component::ApiServer);
    flags
}
