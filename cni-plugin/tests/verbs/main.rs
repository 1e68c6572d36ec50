//! The built plugin on the running kernel: every verb executed as a runtime executes it.
//!
//! Needs root: each test makes network and mount namespaces of its own and touches nothing outside them. Without
//! root every test is announced as ignored.

// A failed expectation is how a test fails; clippy knows only the standard harness as test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod attach;
mod bandwidth;
mod bridge;
mod calls;
mod chain;
mod changed_list;
mod cleanup;
mod crash;
mod environment;
mod faults;
mod flannel;
mod guard;
mod held;
mod host_local;
#[cfg(target_arch = "x86_64")]
mod injected;
#[cfg(target_arch = "x86_64")]
mod injected_names;
mod ipam;
mod lacking;
mod leases;
mod node;
mod pool;
mod port_addresses;
mod port_options;
mod port_owners;
mod ports;
mod predecessor;
mod predecessor_ports;
mod protocol;
mod remove;
mod routes;
mod security;
mod state;
mod stdin;
mod sweep;
mod unknown_keys;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let args = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: the CNI verb tests need root to make network namespaces; all of them count as ignored");
    }
    let groups = [
        attach::TESTS,
        bridge::address::TESTS,
        bridge::table::TESTS,
        bridge::vlan::TESTS,
        bridge::TESTS,
        calls::TESTS,
        chain::TESTS,
        cleanup::TESTS,
        changed_list::TESTS,
        crash::TESTS,
        environment::TESTS,
        stdin::TESTS,
        guard::TESTS,
        host_local::TESTS,
        #[cfg(target_arch = "x86_64")]
        injected::TESTS,
        #[cfg(target_arch = "x86_64")]
        injected_names::TESTS,
        ipam::TESTS,
        faults::TESTS,
        faults::crowd::TESTS,
        faults::files::TESTS,
        faults::links::TESTS,
        flannel::TESTS,
        lacking::TESTS,
        leases::TESTS,
        pool::TESTS,
        port_addresses::TESTS,
        port_options::TESTS,
        port_owners::TESTS,
        ports::TESTS,
        protocol::TESTS,
        remove::TESTS,
        routes::TESTS,
        security::TESTS,
        sweep::TESTS,
        unknown_keys::TESTS,
    ];
    let trials = groups.iter().flat_map(|group| group.iter()).map(|test| trial(test, !root));
    let shaped = root && bandwidth::is_possible();
    if root && !shaped {
        eprintln!("SKIPPED: this kernel lacks tbf, ifb, ingress, u32 or mirred; the tests of limits count as ignored");
    }
    let trials = trials.chain(
        bandwidth::TESTS
            .iter()
            .chain(changed_list::LIMITED_TESTS)
            .chain(injected_limits().into_iter().flatten())
            .map(|test| trial(test, !shaped)),
    );
    let sctp = port_addresses::has_sctp();
    if !sctp {
        eprintln!("SKIPPED: this kernel has no SCTP; its host ports are checked in the table only");
    }
    let quick_links = remove::has_quick_links();
    if quick_links {
        eprintln!(
            "SKIPPED: this kernel deletes a link too soon to show that DEL does not wait for it; that test counts as ignored"
        );
    }
    let iptables = predecessor_ports::is_installed();
    let legacy = root && iptables && predecessor_ports::has_legacy();
    if root && !legacy {
        eprintln!("SKIPPED: no iptables-legacy here; that its rules are reported counts as ignored");
    }
    if !iptables {
        eprintln!(
            "SKIPPED: no iptables-nft or no portmap; the tests of the predecessor's firewall rules count as ignored"
        );
    }
    let predecessor = predecessor::is_installed();
    if !predecessor {
        eprintln!(
            "SKIPPED: no containernetworking-plugins in {}; the tests of changing over count as ignored",
            predecessor::DIR
        );
    }
    let trials = trials
        .chain(
            predecessor::TESTS
                .iter()
                .chain(host_local::PREDECESSOR_TESTS)
                .chain(bridge::stock::TESTS)
                .map(|test| trial(test, !root || !predecessor)),
        )
        .chain(bandwidth::PREDECESSOR_TESTS.iter().map(|test| trial(test, !shaped || !predecessor)))
        .chain(port_addresses::SCTP_TESTS.iter().map(|test| trial(test, !root || !sctp)))
        .chain(remove::SLOW_LINK_TESTS.iter().map(|test| trial(test, !root || quick_links)))
        .chain(predecessor_ports::LEGACY_TESTS.iter().map(|test| trial(test, !legacy)))
        .chain(predecessor_ports::TESTS.iter().map(|test| trial(test, !root || !iptables)))
        .collect();
    libtest_mimic::run(&args, trials).exit();
}

fn trial((name, test): &(&'static str, fn(&node::Node)), is_ignored: bool) -> Trial {
    let test = *test;
    let run = move || {
        node::on_node(test);
        Ok(())
    };
    Trial::test(*name, run).with_ignored_flag(is_ignored)
}

type Tests = &'static [(&'static str, fn(&node::Node))];

#[cfg(target_arch = "x86_64")]
const fn injected_limits() -> [Tests; 2] {
    [injected::LIMITED_TESTS, injected_names::LIMITED_TESTS]
}

#[cfg(not(target_arch = "x86_64"))]
const fn injected_limits() -> [Tests; 0] {
    []
}
