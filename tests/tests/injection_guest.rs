//! Faults of the kernel in the daemons, with what needs the lab kernel: see [`injected`].
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod injected;
mod netd_node;
mod proxy;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use injected::netd::{FLOWTABLE, IPIP, Netd, WIREGUARD};
use injected::proxy::{IPVS, Proxy};
use injected::{every_fault_is_got_over, proxy_verbs};
use lab::Need;
use lab::harness::Suite;

/// Time for the whole walk.
const LONGEST: Duration = Duration::from_secs(3 * 3600);

fn proxy_gets_over_every_operation_that_fails_once_on_ipvs() -> Result<()> {
    every_fault_is_got_over(|| Proxy::start(&IPVS), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_wireguard() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&WIREGUARD), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_ipip() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&IPIP), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_a_flowtable() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&FLOWTABLE), 1)
}

fn proxy_cleanup_of_ipvs_with_any_operation_failing_is_finished_by_the_next() -> Result<()> {
    walked(proxy_verbs::cleanup_finishes(&IPVS, 1)?)
}

fn proxy_cleanup_of_kube_proxys_ipvs_with_any_operation_failing_is_finished_by_the_next() -> Result<()> {
    walked(proxy_verbs::cleanup_of_kube_proxy_finishes(proxy_verbs::VIRTUAL_SERVERS, 1)?)
}

/// A walk that reached the work.
fn walked(faults: usize) -> Result<()> {
    println!("{faults} faults");
    ensure!(faults > 20 / injected::part()?.1, "only {faults} faults: the walk did not reach the work");
    Ok(())
}

fn main() -> ExitCode {
    let ipvs = lab::tests![proxy_gets_over_every_operation_that_fails_once_on_ipvs];
    let all = lab::tests![
        proxy_gets_over_every_operation_that_fails_once_on_ipvs,
        netd_gets_over_every_operation_that_fails_once_with_wireguard,
        netd_gets_over_every_operation_that_fails_once_with_ipip,
        netd_gets_over_every_operation_that_fails_once_with_a_flowtable,
        proxy_cleanup_of_ipvs_with_any_operation_failing_is_finished_by_the_next,
        proxy_cleanup_of_kube_proxys_ipvs_with_any_operation_failing_is_finished_by_the_next,
    ];
    let suite = Suite::new(&[Need::IpVs, Need::Nftables, Need::WireGuard, Need::IpIp, Need::Flowtable]);
    if injection::all() { suite.limit(LONGEST).run(all) } else { suite.run(ipvs) }
}
