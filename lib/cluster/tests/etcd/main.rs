//! The etcd client, watch and store against real etcd servers with real faults: killed, frozen, cut off,
//! compacted, wiped, over TLS and with users.
//!
//! Without an `etcd` binary this is said on stderr and every case counts as ignored; with `NETD_LAB=require` the
//! cases fail instead.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::expect_used, reason = "a test with its own main: clippy sees no test functions here")]

mod behind;
#[path = "../common/mod.rs"]
mod common;
mod consumer;
mod pki;
mod server;
mod store;
mod tls;
mod watch;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use cluster::etcd::Prefix;
use libtest_mimic::{Arguments, Trial};

/// A case: its name and what it does on a runtime of its own.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var("NETD_LAB").is_ok_and(|lab| lab == "require");
    let installed = server::installed() || required;
    if !installed {
        eprintln!("SKIPPED: the etcd cases of lib/cluster: no `etcd` binary (Debian package etcd-server)");
    }
    let cases = [watch::CASES, behind::CASES, store::CASES, tls::CASES].concat();
    let trials = cases
        .into_iter()
        .map(|(name, case)| {
            let run = move || {
                case();
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(!installed)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a case to its end, or fails it after a time no case needs.
fn block_on(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), case).await.expect("the case hangs") });
}

fn subnets() -> Prefix {
    Prefix::parse("etcd-prefix", "/coreos.com/network").unwrap().folder("subnets")
}
