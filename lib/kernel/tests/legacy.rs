//! The chain FORWARD of iptables-legacy as its own tool makes it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

mod common;

use std::process::ExitCode;

use common::{cases, sh};
use kernel::legacy::{Denial, forwarding, has_filter};
use netstate::IpFamily;

fn run(program: &str, args: &str) {
    sh(program, &args.split_whitespace().collect::<Vec<_>>());
}

/// What denies, and whether the network passes.
fn judged(family: IpFamily, network: &str) -> (Option<Denial>, bool) {
    let found = forwarding(family).unwrap();
    (found.denial, found.passes(network.parse().unwrap()))
}

fn chain_that_denies_by_policy_or_by_a_rule_is_known_from_one_that_accepts() {
    for (program, family, network, other) in [
        ("iptables-legacy", IpFamily::V4, "172.7.0.0/16", "10.0.0.0/8"),
        ("ip6tables-legacy", IpFamily::V6, "fd00:7::/48", "fd00:8::/48"),
    ] {
        assert!(!has_filter(family), "asking made no table");
        run(program, "-N USER");
        assert!(has_filter(family));
        assert_eq!(judged(family, network), (None, true));
        run(program, "-P FORWARD DROP");
        assert_eq!(judged(family, network), (Some(Denial::Policy), false));
        run(program, &format!("-A FORWARD -s {network} -m comment --comment pods -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), false), "one direction is not enough");
        run(program, &format!("-A FORWARD -d {network} -p tcp -j ACCEPT"));
        run(program, &format!("-A FORWARD ! -d {network} -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {network} -i eth0 -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {network} -s {other} -j ACCEPT"));
        run(program, &format!("-A FORWARD -d {other} -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), false), "these accept something else");
        run(program, "-A FORWARD -j USER");
        run(program, &format!("-A USER -d {network} -j ACCEPT"));
        assert_eq!(judged(family, network), (Some(Denial::Policy), true), "in a chain that every packet passes");
        run(program, "-P FORWARD ACCEPT");
        assert_eq!(judged(family, network), (None, true));
        run(program, "-I FORWARD -m comment --comment last -j REJECT");
        assert_eq!(judged(family, network), (Some(Denial::Rule), false), "what stands behind it is not reached");
        run(program, "-I FORWARD -j ACCEPT");
        assert_eq!(judged(family, network), (None, true));
        run(program, "-D FORWARD -j ACCEPT");
        run(program, "-D FORWARD 1");
        run(program, "-A USER -j DROP");
        assert_eq!(judged(family, network), (Some(Denial::Rule), true), "denied in a chain behind it");
    }
}

fn main() -> ExitCode {
    common::main(cases![chain_that_denies_by_policy_or_by_a_rule_is_known_from_one_that_accepts])
}
