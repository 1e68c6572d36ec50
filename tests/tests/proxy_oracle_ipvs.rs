//! Every recorded case of kube-proxy by the IPVS data path: who answers, whom it sees, refusal or silence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panic")]

mod replay;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use oracle::Run;
use replay::{Setting, replay};

const PODS: &str = "--cluster-cidr=172.7.0.0/16,fd00:7::/32";
/// By default kube-proxy's mode ipvs has node ports at every address; the recorded runs were in mode nftables.
const PRIMARY: &str = "--nodeport-addresses=primary";

const SETTINGS: [Setting; 5] = [
    by(Run::Plain, &[PODS, PRIMARY]),
    by(Run::MasqueradeAll, &[PODS, PRIMARY, "--masquerade-all"]),
    by(Run::NoDetector, &[PRIMARY]),
    by(Run::NodePortCidr, &[PODS, "--nodeport-addresses=10.4.7.0/24,fd00:4:7::/64"]),
    by(Run::NodePortAll, &[PODS, "--nodeport-addresses=0.0.0.0/0,::/0"]),
];

const fn by(run: Run, flags: &'static [&'static str]) -> Setting {
    Setting { path: "ipvs", run, flags }
}

/// Cases that run beside each other on the one processor of the lab kernel.
const LANES: usize = 3;

fn every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it() -> Result<()> {
    replay(&SETTINGS, LANES)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it],
    )
}
