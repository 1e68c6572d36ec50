//! Flowtables on a kernel that has them, with the nft tool as the independent observer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

mod common;

use std::process::{Command, ExitCode};
use std::time::Duration;

use common::{cases, converge, ip, sh};
use kernel::nft::{Nft, Tables};
use netstate::IfName;
use netstate::nft::*;
use reconcile::{Reconciler, Stage};

/// Established flows of a Pod network, looked up on `devices`.
fn flows(devices: &[&str]) -> Ruleset {
    let mut ruleset = Ruleset::new(TableKey { family: Family::Inet, name: Name::literal("netd") });
    let flows = Name::literal("pods");
    let devices = devices.iter().map(|name| IfName::new(*name).unwrap()).collect();
    ruleset.table.flowtables.insert(flows.clone(), Flowtable::on(devices));
    let mut chain = Chain::base(ChainKind::Filter, Hook::Forward, priority::LAST, Policy::Accept);
    chain.rules = ["172.7.0.0/16", "fd00:7::/48"]
        .map(|pods| {
            let established = Rule::new().when(Match::CtState(CtState::ESTABLISHED));
            let first = established.when(Match::CtDirection(CtDirection::Original));
            first.when(Match::Saddr(Op::Is, pods.parse().unwrap())).then(Statement::Offload(flows.clone()))
        })
        .to_vec();
    ruleset.table.chains.insert(Name::literal("forward"), chain);
    ruleset
}

fn reconciler(ruleset: &Ruleset) -> Reconciler<Tables> {
    let mut table = Reconciler::new("flows", Tables::new(Nft::open().unwrap(), [ruleset.key.clone()]));
    table.want_all(ruleset.rows());
    table
}

fn listed() -> String {
    sh("nft", &["-s", "list", "table", "inet", "netd"])
}

fn make_links(names: &[&str]) {
    for name in names {
        ip(&format!("link add {name} type dummy"));
    }
}

fn flowtable_is_what_the_tool_lists_and_reads_back() {
    make_links(&["flannel.1", "cbr0"]);
    let ruleset = flows(&["flannel.1", "cbr0"]);
    let mut table = reconciler(&ruleset);
    converge(&mut table);
    assert_eq!(listed(), ruleset.render());
    // The same made by the tool is equal to ours.
    sh("nft", &["delete", "table", "inet", "netd"]);
    common::feed("nft", &["-f", "-"], &ruleset.render());
    assert_eq!(Nft::open().unwrap().ruleset(&ruleset.key).unwrap(), Some(ruleset));
}

fn what_goes_from_a_flowtable_comes_back() {
    make_links(&["flannel.1", "cbr0"]);
    let ruleset = flows(&["flannel.1", "cbr0"]);
    converge(&mut reconciler(&ruleset));
    for damage in [
        "nft flush ruleset",
        "nft flush chain inet netd forward",
        "nft flush chain inet netd forward; nft delete flowtable inet netd pods",
        // The kernel takes the link out without a word.
        "ip link delete cbr0; ip link add cbr0 type dummy",
        "ip link add eth9 type dummy; nft add flowtable inet netd pods '{ hook ingress priority 0; devices = { eth9 }; }'",
    ] {
        sh("sh", &["-c", damage]);
        // A fresh one: whoever undoes a row again and again is met with patience.
        converge(&mut reconciler(&ruleset));
        assert_eq!(listed(), ruleset.render(), "after {damage}");
    }
}

fn links_of_a_flowtable_change_under_its_rules() {
    make_links(&["flannel.1", "cbr0", "eth0"]);
    let mut table = reconciler(&flows(&["flannel.1"]));
    converge(&mut table);
    for devices in [&["cbr0", "eth0", "flannel.1"][..], &["cbr0"], &["eth0", "flannel.1"]] {
        table.want_all(flows(devices).rows());
        converge(&mut table);
        assert_eq!(listed(), flows(devices).render());
    }
}

/// Newer kernels know links by their names, and take the link in when it comes.
fn link_that_is_not_there_fails_with_the_reason_until_it_comes_unless_the_kernel_waits_for_it() {
    make_links(&["cbr0"]);
    let ruleset = flows(&["cbr0", "flannel.1"]);
    let mut table = reconciler(&ruleset);
    table.pass(true, Duration::ZERO);
    let status = format!("{:?}", table.status());
    if waits_for_links() {
        assert!(!status.contains("one of the flowtable's links"), "{status}");
        make_links(&["flannel.1"]);
        assert_eq!(listed(), ruleset.render());
        return;
    }
    assert!(status.contains("one of the flowtable's links"), "{status}");
    make_links(&["flannel.1"]);
    table.retry();
    converge(&mut table);
}

/// Whether the nft tool can name a link that is not there, in a table that is gone afterwards.
fn waits_for_links() -> bool {
    sh("nft", &["add", "table", "inet", "tried"]);
    let flowtable = "{ hook ingress priority 0; devices = { none7 }; }";
    let tried = Command::new("nft").args(["add", "flowtable", "inet", "tried", "flows", flowtable]).output().unwrap();
    sh("nft", &["delete", "table", "inet", "tried"]);
    tried.status.success()
}

/// Tried in a namespace of its own.
fn has_flowtables() -> bool {
    let probe = "ip link set lo up; nft add table inet probe && \
                 nft add flowtable inet probe flows '{ hook ingress priority 0; devices = { lo }; }'";
    let tried = Command::new("unshare").args(["-n", "sh", "-c", probe]).output();
    tried.is_ok_and(|output| output.status.success())
}

fn main() -> ExitCode {
    common::main_in_lab(
        "flowtables",
        has_flowtables,
        cases![
            flowtable_is_what_the_tool_lists_and_reads_back,
            what_goes_from_a_flowtable_comes_back,
            links_of_a_flowtable_change_under_its_rules,
            link_that_is_not_there_fails_with_the_reason_until_it_comes_unless_the_kernel_waits_for_it,
        ],
    )
}
