//! flannel's resilience matrix with vxlan, host-gw and auto, in one family and in both.

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result};
use lab::Need;
use netd_node::resilience::{loses_nothing, survives};

/// The backends, and those of them that carry IPv6.
const BACKENDS: [&str; 3] = ["vxlan", "host-gw", "auto"];
const DUAL: [&str; 3] = ["vxlan", "host-gw", "auto"];

fn each(backends: &[&str], dual: bool, holds: fn(&str, bool) -> Result<()>) -> Result<()> {
    backends.iter().try_for_each(|backend| holds(backend, dual).with_context(|| (*backend).to_owned()))
}

fn restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet() -> Result<()> {
    each(&BACKENDS, false, loses_nothing)
}

fn restart_upgrade_crash_and_an_outage_of_etcd_lose_no_packet_of_ipv6() -> Result<()> {
    each(&DUAL, true, loses_nothing)
}

fn new_pod_and_restarts_find_their_way_back_with_the_same_subnets() -> Result<()> {
    each(&BACKENDS, false, survives)
}

fn new_pod_and_restarts_of_both_families_find_their_way_back_with_the_same_subnets() -> Result<()> {
    each(&DUAL, true, survives)
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
