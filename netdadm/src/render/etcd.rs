//! A member of etcd: its settings as variables in a file, and its unit.
//!
//! Invariant: what etcd reads only while its folder is empty has a file of its own, whose change asks for no restart; every
//! listener but that of metrics on loopback asks for a certificate.

use std::fmt::Write as _;

use super::tree::Start;
use super::unit::{self, CONFINED, INSTALL, MADE, RESTART};
use super::{PKI, Place, Tree, place};
use crate::topology::{Host, Program, Purpose, Role, Topology, Version};

/// The settings of a member.
const SETTINGS: &str = "/etc/etcd/etcd.conf";

/// Where a member has its database.
pub(crate) const DATA: &str = "/var/lib/etcd/default.etcd";

/// What a new member reads.
const INITIAL: &str = "/etc/etcd/initial.conf";

/// The most that a database may grow to, in bytes: 8 GiB, as etcd's documentation advises.
const QUOTA: u64 = 8 << 30;

/// Adds the member of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    tree.file(SETTINGS, settings(place));
    tree.file(INITIAL, initial(place));
    let authority = format!("{PKI}/etcd/ca.crt");
    // Alone, the first member of several has no leader.
    let is_alone = place.topology.of(Role::Etcd).count() == 1;
    let start =
        Start::waited_if(is_alone).until(format!("http://{}/health", place.loopback(Purpose::EtcdMetrics)), None, 120);
    tree.unit("etcd.service", unit(place), &[SETTINGS, &authority], start);
}

fn settings(place: &Place<'_>) -> String {
    let (client, peer) = (place.at(Purpose::EtcdClient), place.at(Purpose::EtcdPeer));
    let mut text = format!(
        "{MADE}# A change asks for a restart of etcd.service.\n\
         ETCD_NAME={name}\n\
         ETCD_DATA_DIR={DATA}\n\
         ETCD_LISTEN_PEER_URLS=https://{peer}\n\
         ETCD_LISTEN_CLIENT_URLS=https://{client},https://{local}\n\
         ETCD_ADVERTISE_CLIENT_URLS=https://{client}\n\
         ETCD_LISTEN_METRICS_URLS=http://{metrics}\n\
         ETCD_QUOTA_BACKEND_BYTES={QUOTA}\n",
        name = place.name(),
        local = place.loopback(Purpose::EtcdClient),
        metrics = place.loopback(Purpose::EtcdMetrics),
    );
    for (prefix, certificate) in [("ETCD_", "server"), ("ETCD_PEER_", "peer")] {
        // Writing into a text does not fail.
        let _ = write!(
            text,
            "{prefix}CERT_FILE={PKI}/etcd/{certificate}.crt\n\
             {prefix}KEY_FILE={PKI}/etcd/{certificate}.key\n\
             {prefix}CLIENT_CERT_AUTH=true\n\
             {prefix}TRUSTED_CA_FILE={PKI}/etcd/ca.crt\n"
        );
    }
    text + by_version(place.etcd())
}

/// What has another name in each version, and what only some have.
fn by_version(version: Option<Version>) -> &'static str {
    let minor = version.filter(|version| version.major == 3).map_or(u32::MAX, |version| version.minor);
    match minor {
        ..=4 => "ETCD_LOGGER=zap\nETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK=true\n",
        5 => "ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK=true\nETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL=5s\n",
        _ => "ETCD_FEATURE_GATES=InitialCorruptCheck=true\nETCD_WATCH_PROGRESS_NOTIFY_INTERVAL=5s\n",
    }
}

/// The members that the one of `host` knows at its first start, with where others reach them: to one that joins a cluster, those
/// that join behind it in the topology are no members yet, and etcd refuses any other list than its own.
pub(crate) fn initial_members<'a>(
    topology: &'a Topology,
    host: &'a Host,
) -> impl Iterator<Item = (&'a str, String)> + use<'a> {
    let position = |one: &Host| topology.hosts.iter().position(|other| other.name.value == one.name.value);
    let own = position(host);
    let is_there = move |other: &&Host| !host.joins || !other.joins || position(other) <= own;
    let places = topology.of(Role::Etcd).filter(is_there).filter_map(|host| Place::of(topology, host));
    places.map(|member| (member.name(), format!("https://{}", member.at(Purpose::EtcdPeer))))
}

fn initial(place: &Place<'_>) -> String {
    let topology = place.topology;
    let members = initial_members(topology, place.host).map(|(name, peer)| format!("{name}={peer}"));
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    format!(
        "{MADE}# Read only by a member whose folder is empty: a change asks for nothing.\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=https://{peer}\n\
         ETCD_INITIAL_CLUSTER={members}\n\
         ETCD_INITIAL_CLUSTER_TOKEN={cluster}\n\
         ETCD_INITIAL_CLUSTER_STATE={state}\n",
        peer = place.at(Purpose::EtcdPeer),
        members = place::joined(members),
        state = if place.host.joins { "existing" } else { "new" },
    )
}

fn unit(place: &Place<'_>) -> String {
    format!(
        "{head}\
         # Ready once the cluster has a leader, however long the other members take.\n\
         Type=notify\nTimeoutStartSec=infinity\n\
         EnvironmentFile={SETTINGS}\nEnvironmentFile={INITIAL}\n\
         ExecStart={program}\n\
         {RESTART}LimitNOFILE=65536\nStateDirectory=etcd\nStateDirectoryMode=0700\n{CONFINED}{INSTALL}",
        head = unit::head("Member of etcd", "", true),
        program = place.program(Program::Etcd, "etcd"),
    )
}
