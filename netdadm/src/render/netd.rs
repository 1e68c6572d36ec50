//! netd: its variables, its unit as the project ships it, and the configuration of the network where netd reads it.
//!
//! Invariant: one host writes the configuration into etcd, so that nobody else's is older or newer.

use std::fmt::Write as _;

use super::tree::Start;
use super::unit::{self, INSTALL, MADE};
use super::{KUBERNETES, PKI, Place, Tree};
use crate::topology::{Backend, ETCD_PREFIX, Program, Purpose, Role};

/// The unit that the project ships.
const UNIT: &str = include_str!("../../../configs/systemd/netd.service");

/// Where etcd is for somebody who has no file of settings.
const WITHOUT: &str = "Environment=FLANNELD_ETCD_ENDPOINTS=http://127.0.0.1:2379 FLANNELD_IP_MASQ=true\nEnvironmentFile=-/etc/default/netd\n";

/// Its variables.
const SETTINGS: &str = "/etc/default/netd";

/// The configuration of the network.
const NETWORK: &str = "/etc/netd/net-conf.json";

/// Adds netd of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    tree.file(SETTINGS, settings(place));
    let mut restart = vec![SETTINGS];
    if place.leases_in_etcd() {
        writer(place, tree);
    } else {
        tree.file(NETWORK, network(place));
        restart.push(NETWORK);
    }
    let program = place.program(Program::Netd, "netd");
    let text = UNIT.replace("/usr/local/bin/netd", &program).replace(WITHOUT, &format!("EnvironmentFile={SETTINGS}\n"));
    // It waits for etcd or the API server of other hosts.
    let start = Start::alone().until(format!("http://{}/readyz", place.loopback(Purpose::Netd)), None, 120);
    tree.unit("netd.service", format!("{MADE}{text}"), &restart, start);
}

/// On the first node, the configuration and the unit that puts it into etcd.
fn writer(place: &Place<'_>, tree: &mut Tree) {
    let first = place.topology.of(Role::Node).next();
    if first.is_none_or(|first| first.name.value != place.host.name.value) {
        return;
    }
    tree.file(NETWORK, network(place));
    let text = format!(
        "{head}\
         # Nothing is written when etcd holds this text already.\n\
         Type=oneshot\nRemainAfterExit=yes\nEnvironmentFile={SETTINGS}\n\
         ExecStart={program} config set -f {NETWORK}\nRestart=on-failure\nRestartSec=5s\n{INSTALL}",
        head = unit::head("Configuration of the Pod network in etcd", " etcd.service", true),
        program = place.program(Program::Netd, "netd"),
    );
    tree.unit("netd-config.service", text, &[NETWORK], Start::alone());
}

fn settings(place: &Place<'_>) -> String {
    let mut text = format!(
        "{MADE}# A change asks for a restart of netd.service; the data path stays.\n\
         FLANNELD_IFACE={address}\n\
         FLANNELD_IP_MASQ=true\n\
         NETD_SERVICE_CIDR={services}\n\
         NETD_METRICS_BIND_ADDRESS={metrics}\n\
         NETD_PROBE_PORT={probes}\n",
        address = place.address,
        services = place.services(),
        metrics = place.loopback(Purpose::Netd),
        probes = place.port(Purpose::Netd),
    );
    let name = place.name();
    // Writing into a text does not fail.
    let _ = if place.leases_in_etcd() {
        let prefix = place.topology.etcd_prefix.as_ref();
        let prefix = prefix.map_or_else(|| ETCD_PREFIX.to_owned(), |prefix| prefix.value.to_string());
        let endpoints = place.etcd_endpoints();
        write!(
            text,
            "NETD_STORE=etcd\n\
             FLANNELD_ETCD_ENDPOINTS={endpoints}\n\
             FLANNELD_ETCD_PREFIX={prefix}\n\
             FLANNELD_ETCD_CAFILE={PKI}/etcd/ca.crt\n\
             FLANNELD_ETCD_CERTFILE={PKI}/netd-etcd-client.crt\n\
             FLANNELD_ETCD_KEYFILE={PKI}/netd-etcd-client.key\n\
             NETD_LEASE_POLICY=previous,node-ip,first-free\n"
        )
    } else {
        write!(
            text,
            "FLANNELD_KUBE_SUBNET_MGR=true\n\
             FLANNELD_KUBECONFIG_FILE={KUBERNETES}/netd.conf\n\
             FLANNELD_NET_CONFIG_PATH={NETWORK}\n\
             NODE_NAME={name}\n"
        )
    };
    text
}

/// The configuration of the network, in flannel's form.
fn network(place: &Place<'_>) -> String {
    let topology = place.topology;
    let mut members = Vec::new();
    for network in &topology.networks.pods {
        if network.value.is_ipv4() {
            members.push(format!("\"Network\": \"{}\"", network.value));
            members.push(format!("\"SubnetLen\": {}", topology.pods.subnet_length.value));
        } else {
            members.push("\"EnableIPv6\": true".to_owned());
            members.push(format!("\"IPv6Network\": \"{}\"", network.value));
        }
    }
    if !topology.networks.pods.iter().any(|network| network.value.is_ipv4()) {
        members.insert(0, "\"EnableIPv4\": false".to_owned());
    }
    let backend = match topology.pods.backend.value {
        Backend::Vxlan => format!("\"Type\": \"vxlan\",\n    \"Port\": {}", place.port(Purpose::Vxlan)),
        Backend::HostGw => "\"Type\": \"host-gw\"".to_owned(),
        Backend::Wireguard => {
            format!("\"Type\": \"wireguard\",\n    \"ListenPort\": {}", place.port(Purpose::Wireguard))
        }
    };
    members.push(format!("\"Backend\": {{\n    {backend}\n  }}"));
    format!("{{\n  {}\n}}\n", members.join(",\n  "))
}
