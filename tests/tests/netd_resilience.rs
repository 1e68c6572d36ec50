//! flannel's resilience matrix with vxlan, host-gw and auto, in one family and in both.

mod netd_node;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use netd_node::resilience::{each_loses_nothing, each_survives};

/// The backends, and those of them that carry IPv6.
const BACKENDS: [&str; 3] = ["vxlan", "host-gw", "auto"];
const DUAL: [&str; 3] = ["vxlan", "host-gw", "auto"];

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
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet,
            restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet_of_ipv6,
            new_pod_and_restarts_find_their_way_back_with_the_same_subnets,
            new_pod_and_restarts_of_both_families_find_their_way_back_with_the_same_subnets,
        ],
    )
}
