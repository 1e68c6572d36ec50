//! Every recorded case of kube-proxy by the IPVS data path: who answers, whom it sees, refusal or silence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panic")]

mod replay;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use oracle::Run;
use replay::{Setting, replay};

/// Cases that run beside each other on the one processor of the lab kernel.
const LANES: usize = 3;

fn every_case_is_answered_as_kube_proxy_answers_it() -> Result<()> {
    // By default kube-proxy's mode ipvs has node ports at every address; the recorded runs were in mode nftables.
    let flags = &["--cluster-cidr=172.7.0.0/16,fd00:7::/32", "--nodeport-addresses=primary"];
    replay(Setting { path: "ipvs", run: Run::Plain, flags }, LANES)
}

fn nobody_is_known_for_a_pod_without_a_pod_network() -> Result<()> {
    replay(Setting { path: "ipvs", run: Run::NoDetector, flags: &["--nodeport-addresses=primary"] }, LANES)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![every_case_is_answered_as_kube_proxy_answers_it, nobody_is_known_for_a_pod_without_a_pod_network],
    )
}
