//! Sets of ipset against a kernel that has them, with the ipset tool as the independent observer.
//!
//! When the running kernel has none, the whole binary runs inside the lab kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::process::{Command, ExitCode};

use common::{cases, sh};
use kernel::Chain;
use kernel::ipset::{Entry, Sets};

fn ipset(args: &str) {
    sh("ipset", &args.split_whitespace().collect::<Vec<_>>());
}

fn names_are_listed_and_a_set_is_destroyed_with_what_is_in_it() {
    let mut sets = Sets::open().unwrap();
    assert_eq!(sets.names().unwrap(), Vec::<String>::new());
    ipset("create KUBE-CLUSTER-IP hash:ip,port");
    ipset("create KUBE-6-LOOP-BACK hash:ip,port,ip family inet6");
    ipset("create others hash:net");
    ipset("add KUBE-CLUSTER-IP 192.168.0.10,tcp:80");
    let mut names = sets.names().unwrap();
    names.sort();
    assert_eq!(names, ["KUBE-6-LOOP-BACK", "KUBE-CLUSTER-IP", "others"]);
    assert!(sets.destroy("KUBE-CLUSTER-IP").unwrap());
    assert!(!sets.destroy("KUBE-CLUSTER-IP").unwrap(), "it is gone already");
    let left = sh("ipset", &["list", "-n"]);
    assert!(!left.contains("KUBE-CLUSTER-IP") && left.contains("others"), "{left}");
}

fn entries_of_a_set_are_read() {
    ipset("create KUBE-NODE-PORT-TCP bitmap:port range 0-65535");
    ipset("create KUBE-NODE-PORT-SCTP-HASH hash:ip,port");
    ipset("add KUBE-NODE-PORT-TCP 30080");
    ipset("add KUBE-NODE-PORT-TCP 30443");
    ipset("add KUBE-NODE-PORT-SCTP-HASH 10.4.7.21,sctp:31000");
    ipset("create KUBE-6-CLUSTER-IP hash:ip,port family inet6");
    ipset("add KUBE-6-CLUSTER-IP fd00:9::10,tcp:80");
    let mut sets = Sets::open().unwrap();
    let port = |port| Entry { addr: None, protocol: None, port };
    assert_eq!(sets.entries("KUBE-NODE-PORT-TCP").unwrap(), [port(30080), port(30443)]);
    let of = |addr: &str, protocol, port| Entry { addr: addr.parse().ok(), protocol: Some(protocol), port };
    assert_eq!(sets.entries("KUBE-NODE-PORT-SCTP-HASH").unwrap(), [of("10.4.7.21", 132, 31000)]);
    assert_eq!(sets.entries("KUBE-6-CLUSTER-IP").unwrap(), [of("fd00:9::10", 6, 80)]);
}

fn a_set_that_a_rule_uses_stays_and_says_so() {
    let mut sets = Sets::open().unwrap();
    ipset("create used hash:ip");
    let rule = |verb: &str| {
        sh("iptables-nft", &[verb, "INPUT", "-m", "set", "--match-set", "used", "src", "-j", "ACCEPT"]);
    };
    rule("-A");
    let error = sets.destroy("used").unwrap_err();
    assert!(Chain(&error).to_string().starts_with("destroy set used: a rule uses it"), "{}", Chain(&error));
    rule("-D");
    assert!(sets.destroy("used").unwrap(), "the kernel lets go of it a moment after the rule");
}

fn has_ipset() -> bool {
    Command::new("ipset").args(["list", "-n"]).output().is_ok_and(|output| output.status.success())
}

fn main() -> ExitCode {
    let cases = cases![
        names_are_listed_and_a_set_is_destroyed_with_what_is_in_it,
        entries_of_a_set_are_read,
        a_set_that_a_rule_uses_stays_and_says_so,
    ];
    common::main_in_lab("ipset", has_ipset, cases)
}
