//! Faults of the kernel in the daemons, on this machine's kernel: see [`injected`].
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod injected;
#[path = "injected/kubernetes.rs"]
mod injected_kubernetes;
#[path = "injected/netdadm.rs"]
mod injected_netdadm;
mod kube_nodes;
mod netd_node;
mod netdadm_etcd;
mod proxy;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use injected::netd::{DUAL, EXTENSION, HOST_GW, Netd, VXLAN};
use injected::proxy::{NFTABLES, Proxy};
use injected::{every_fault_is_got_over, every_fault_is_got_over_alone, netd_verbs, proxy_verbs};
use lab::Need;
use lab::harness::Suite;
use lab::kubernetes::Release;

fn netd_gets_over_every_operation_that_fails_once_with_vxlan() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&VXLAN), 4)
}

fn netd_gets_over_every_operation_that_fails_once_with_host_gw() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&HOST_GW), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_both_families() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&DUAL), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_an_extension() -> Result<()> {
    every_fault_is_got_over(|| Netd::start(&EXTENSION), 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_kubernetes() -> Result<()> {
    every_fault_is_got_over_alone(&injected_kubernetes::Netd::start()?, 1)
}

fn proxy_gets_over_every_operation_that_fails_once_on_nftables() -> Result<()> {
    every_fault_is_got_over(|| Proxy::start(&NFTABLES), 4)
}

fn proxy_gets_over_every_operation_that_fails_once_with_etcd() -> Result<()> {
    every_fault_is_got_over(|| Proxy::start_with_etcd(&NFTABLES), 1)
}

fn netd_cleanup_with_any_operation_failing_is_finished_by_the_next() -> Result<()> {
    walked(netd_verbs::cleanup_finishes(SAMPLE)?)
}

fn netd_config_and_lease_with_any_operation_failing_change_the_store_or_do_not() -> Result<()> {
    walked(netd_verbs::store_is_changed_once(SAMPLE)?)
}

fn netd_config_and_docker_opts_with_any_operation_failing_leave_no_half_file() -> Result<()> {
    walked(netd_verbs::files_are_whole(SAMPLE)?)
}

fn proxy_cleanup_with_any_operation_failing_is_finished_by_the_next() -> Result<()> {
    walked(proxy_verbs::cleanup_finishes(&NFTABLES, SAMPLE)?)
}

fn proxy_cleanup_of_kube_proxys_rules_with_any_operation_failing_is_finished_by_the_next() -> Result<()> {
    walked(proxy_verbs::cleanup_of_kube_proxy_finishes(proxy_verbs::RULES, SAMPLE)?)
}

fn proxy_apply_and_delete_with_any_operation_failing_are_finished_by_the_next() -> Result<()> {
    walked(proxy_verbs::store_is_changed_once(SAMPLE)?)
}

fn proxy_settings_with_any_operation_failing_leave_no_half_file() -> Result<()> {
    walked(proxy_verbs::files_are_whole(SAMPLE)?)
}

/// A walk that reached the work.
fn walked(faults: usize) -> Result<()> {
    println!("{faults} faults");
    ensure!(faults > 2 / injected::part()?.1, "only {faults} faults: the walk did not reach the work");
    Ok(())
}

fn netdadm_backup_with_any_operation_failing_leaves_no_half() -> Result<()> {
    let faults = injected_netdadm::backup_leaves_no_half(&injected_netdadm::Members::start()?)?;
    println!("{faults} faults");
    ensure!(faults > 40, "only {faults} faults: the walk did not reach the work");
    Ok(())
}

fn netdadm_etcd_with_any_operation_failing_changes_no_other_member() -> Result<()> {
    let faults = injected_netdadm::members_are_never_others(&injected_netdadm::Members::start()?)?;
    println!("{faults} faults");
    ensure!(faults > 80 / injected::part()?.1, "only {faults} faults: the walk did not reach the work");
    Ok(())
}

/// Each so many operations of a verb one fails, where not all do.
const SAMPLE: usize = 3;

fn main() -> ExitCode {
    let mut tests = lab::tests![
        netd_config_and_docker_opts_with_any_operation_failing_leave_no_half_file,
        netd_gets_over_every_operation_that_fails_once_with_vxlan,
        proxy_gets_over_every_operation_that_fails_once_on_nftables,
    ];
    let suite = Suite::new(&[Need::Nftables, Need::Vxlan]);
    if !injection::all() {
        return suite.run(tests);
    }
    // What is rarer, or has no step that vxlan has not.
    tests.extend(lab::tests![
        netd_cleanup_with_any_operation_failing_is_finished_by_the_next,
        netd_config_and_lease_with_any_operation_failing_change_the_store_or_do_not,
        proxy_cleanup_with_any_operation_failing_is_finished_by_the_next,
        proxy_cleanup_of_kube_proxys_rules_with_any_operation_failing_is_finished_by_the_next,
        proxy_apply_and_delete_with_any_operation_failing_are_finished_by_the_next,
        proxy_settings_with_any_operation_failing_leave_no_half_file,
        netd_gets_over_every_operation_that_fails_once_with_host_gw,
        netd_gets_over_every_operation_that_fails_once_with_both_families,
        netd_gets_over_every_operation_that_fails_once_with_an_extension,
        netd_gets_over_every_operation_that_fails_once_with_kubernetes,
        proxy_gets_over_every_operation_that_fails_once_with_etcd,
        netdadm_backup_with_any_operation_failing_leaves_no_half,
        netdadm_etcd_with_any_operation_failing_changes_no_other_member,
    ]);
    suite.with_kubernetes(Release::V1_20).run(tests)
}
