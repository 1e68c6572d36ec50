//! What the kernel has is what `ip` and `nft` can make in it; and asking makes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail by panic"
)]

mod common;

use std::process::{Command, ExitCode};

use common::{cases, sh};
use kernel::feature::{Feature, missing};

/// Lines that make use of each, in a namespace that has none of it.
const USES: [(Feature, &[&str]); 16] = [
    (Feature::Vxlan, &["ip link add made type vxlan id 1 dstport 8472"]),
    (Feature::Ipip, &["ip link add made type ipip local 127.0.0.1"]),
    (Feature::WireGuard, &["ip link add made type wireguard"]),
    (Feature::Dummy, &["ip link add made type dummy"]),
    (Feature::Nftables, &["nft add table ip made"]),
    (Feature::Tracking, &["nft add table ip made", "nft add chain ip made c", "nft add rule ip made c ct state new"]),
    (
        Feature::Translation,
        &[
            "nft add table ip made",
            "nft add chain ip made c { type nat hook postrouting priority 100 ; }",
            "nft add rule ip made c masquerade",
        ],
    ),
    (
        Feature::LocalAddresses,
        &["nft add table ip made", "nft add chain ip made c", "nft add rule ip made c fib daddr type local"],
    ),
    (
        Feature::Random,
        &["nft add table ip made", "nft add chain ip made c", "nft add rule ip made c numgen random mod 2 0"],
    ),
    (Feature::Reject, &["nft add table ip made", "nft add chain ip made c", "nft add rule ip made c reject"]),
    (
        Feature::Flowtable,
        &["nft add table inet made", "nft add flowtable inet made f { hook ingress priority 0 ; devices = { lo } ; }"],
    ),
    (Feature::Connections, &["conntrack -L"]),
    (Feature::Ipvs, &["ipvsadm -A -t 192.168.0.10:80"]),
    (Feature::BridgeTables, &["nft add table bridge made"]),
    (Feature::TokenBucket, &["tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1ms"]),
    (Feature::Ifb, &["ip link add made type ifb"]),
];

fn is_done(line: &str) -> bool {
    let mut words = line.split(' ');
    Command::new(words.next().unwrap()).args(words).output().unwrap().status.success()
}

fn has_is_what_can_be_used() {
    let said = missing(&Feature::ALL).unwrap();
    let mut used = Vec::new();
    for (feature, lines) in USES {
        let works = lines.iter().all(|line| is_done(line));
        eprintln!("{feature}: {}", if works { "there" } else { "missing" });
        if !works {
            used.push(feature);
        }
        is_done("ip link delete made");
        is_done("nft flush ruleset");
        is_done("tc qdisc delete dev lo root");
    }
    assert_eq!(said, used, "what is said to be missing, and what cannot be used");
    assert_eq!(USES.map(|(feature, _)| feature), Feature::ALL);
}

fn name_of_a_link_that_is_not_there_is_taken_where_the_tool_can_name_one() {
    is_done("nft add table inet made");
    let ahead = is_done("nft add flowtable inet made f { hook ingress priority 0 ; devices = { none7 } ; }");
    is_done("nft flush ruleset");
    assert_eq!(Feature::flowtable_takes_names_ahead().unwrap(), ahead);
}

fn asking_makes_nothing() {
    let state = || {
        [
            sh("ip", &["-o", "link"]),
            sh("tc", &["qdisc"]),
            Command::new("nft")
                .args(["list", "ruleset"])
                .output()
                .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
                .unwrap(),
        ]
    };
    let before = state();
    missing(&Feature::ALL).unwrap();
    assert_eq!(state(), before);
}

fn main() -> ExitCode {
    common::main(cases![
        has_is_what_can_be_used,
        name_of_a_link_that_is_not_there_is_taken_where_the_tool_can_name_one,
        asking_makes_nothing,
    ])
}
