//! Every recorded case of kube-proxy by the nftables data path: who answers, whom it sees, refusal or silence.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panic")]

mod replay;

use std::process::ExitCode;

use anyhow::Result;
use lab::Need;
use oracle::Run;
use replay::{Setting, replay};

const PODS: &str = "--cluster-cidr=172.7.0.0/16,fd00:7::/32";

const SETTINGS: [Setting; 5] = [
    by(Run::Plain, &[PODS]),
    by(Run::MasqueradeAll, &[PODS, "--masquerade-all"]),
    by(Run::NoDetector, &[]),
    by(Run::NodePortCidr, &[PODS, "--nodeport-addresses=10.4.7.0/24,fd00:4:7::/64"]),
    by(Run::NodePortAll, &[PODS, "--nodeport-addresses=0.0.0.0/0,::/0"]),
];

const fn by(run: Run, flags: &'static [&'static str]) -> Setting {
    Setting { path: "nftables", run, flags }
}

/// Cases that run beside each other: most of the time is waiting for what nobody answers.
const LANES: usize = 4;

fn every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it() -> Result<()> {
    replay(&SETTINGS, LANES)
}

fn main() -> ExitCode {
    lab::harness::main(&[Need::Nftables], lab::tests![every_case_of_every_set_up_is_answered_as_kube_proxy_answers_it])
}
