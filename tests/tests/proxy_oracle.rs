//! Every recorded case of kube-proxy by the nftables data path: who answers, whom it sees, refusal or silence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panic")]

mod replay;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use oracle::Run;
use replay::{Setting, replay};

const PODS: &str = "--cluster-cidr=172.7.0.0/16,fd00:7::/32";

/// Cases that run beside each other: most of the time is waiting for what nobody answers.
const LANES: usize = 4;

fn every_case_is_answered_as_kube_proxy_answers_it() -> Result<()> {
    replay(Setting { path: "nftables", run: Run::Plain, flags: &[PODS] }, LANES)
}

fn everybody_is_masqueraded_where_kube_proxy_masquerades_all() -> Result<()> {
    replay(Setting { path: "nftables", run: Run::MasqueradeAll, flags: &[PODS, "--masquerade-all"] }, LANES)
}

fn nobody_is_known_for_a_pod_without_a_pod_network() -> Result<()> {
    replay(Setting { path: "nftables", run: Run::NoDetector, flags: &[] }, LANES)
}

fn node_ports_are_at_the_addresses_of_a_network() -> Result<()> {
    let flags = &[PODS, "--nodeport-addresses=10.4.7.0/24,fd00:4:7::/64"];
    replay(Setting { path: "nftables", run: Run::NodePortCidr, flags }, LANES)
}

fn node_ports_are_at_every_address() -> Result<()> {
    let flags = &[PODS, "--nodeport-addresses=0.0.0.0/0,::/0"];
    replay(Setting { path: "nftables", run: Run::NodePortAll, flags }, LANES)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            every_case_is_answered_as_kube_proxy_answers_it,
            everybody_is_masqueraded_where_kube_proxy_masquerades_all,
            nobody_is_known_for_a_pod_without_a_pod_network,
            node_ports_are_at_the_addresses_of_a_network,
            node_ports_are_at_every_address,
        ],
    )
}
