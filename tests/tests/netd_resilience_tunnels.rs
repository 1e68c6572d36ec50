//! flannel's resilience matrix with the backends that need a kernel of their own: wireguard and ipip.

mod netd_node;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use netd_node::resilience::{each_loses_nothing, each_survives};

/// The backends, and those of them that carry IPv6.
const BACKENDS: [&str; 2] = ["wireguard", "ipip"];
const DUAL: [&str; 1] = ["wireguard"];

fn restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet() -> Result<()> {
    each_loses_nothing(&BACKENDS, false)
}

fn restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet_of_ipv6() -> Result<()> {
    each_loses_nothing(&DUAL, true)
}

fn new_pod_and_restarts_find_their_way_back_with_the_same_subnets() -> Result<()> {
    each_survives(&BACKENDS, false)
}

fn new_pod_and_restarts_of_both_families_find_their_way_back_with_the_same_subnets() -> Result<()> {
    each_survives(&DUAL, true)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables, Need::WireGuard, Need::IpIp],
        lab::tests![
            restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet,
            restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet_of_ipv6,
            new_pod_and_restarts_find_their_way_back_with_the_same_subnets,
            new_pod_and_restarts_of_both_families_find_their_way_back_with_the_same_subnets,
        ],
    )
}
