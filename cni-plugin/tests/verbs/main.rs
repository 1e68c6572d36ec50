//! The built plugin on the running kernel: every verb executed as a runtime executes it.
//!
//! Needs root: each test makes network and mount namespaces of its own and touches nothing outside them. Without
//! root every test is announced as ignored.

// A failed expectation is how a test fails; clippy knows only the standard harness as test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod attach;
mod chain;
mod crash;
mod leases;
mod node;
mod ports;
mod protocol;
mod remove;
mod sweep;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let args = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: the CNI verb tests need root to make network namespaces; all of them count as ignored");
    }
    let groups = [
        attach::TESTS,
        chain::TESTS,
        crash::TESTS,
        leases::TESTS,
        ports::TESTS,
        protocol::TESTS,
        remove::TESTS,
        sweep::TESTS,
    ];
    let trial = |(name, test): &(&'static str, fn(&node::Node))| {
        let test = *test;
        Trial::test(*name, move || {
            node::on_node(test);
            Ok(())
        })
        .with_ignored_flag(!root)
    };
    let trials = groups.iter().flat_map(|group| group.iter()).map(trial).collect();
    libtest_mimic::run(&args, trials).exit();
}
