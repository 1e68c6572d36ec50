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
use injected::every_fault_is_got_over;
use injected::netd::{HOST_GW, Netd, VXLAN};
use injected::proxy::{NFTABLES, Proxy};
use lab::Need;
use lab::harness::Suite;
use lab::kubernetes::Release;

fn netd_gets_over_every_operation_that_fails_once_with_vxlan() -> Result<()> {
    every_fault_is_got_over(&Netd::start(&VXLAN)?, 4)
}

fn netd_gets_over_every_operation_that_fails_once_with_host_gw() -> Result<()> {
    every_fault_is_got_over(&Netd::start(&HOST_GW)?, 1)
}

fn netd_gets_over_every_operation_that_fails_once_with_kubernetes() -> Result<()> {
    every_fault_is_got_over(&injected_kubernetes::Netd::start()?, 1)
}

fn proxy_gets_over_every_operation_that_fails_once_on_nftables() -> Result<()> {
    every_fault_is_got_over(&Proxy::start(&NFTABLES)?, 4)
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

fn main() -> ExitCode {
    let mut tests = lab::tests![
        netd_gets_over_every_operation_that_fails_once_with_vxlan,
        proxy_gets_over_every_operation_that_fails_once_on_nftables,
    ];
    let suite = Suite::new(&[Need::Nftables, Need::Vxlan]);
    if !injection::all() {
        return suite.run(tests);
    }
    // What is rarer, or has no step that vxlan has not.
    tests.extend(lab::tests![
        netd_gets_over_every_operation_that_fails_once_with_host_gw,
        netd_gets_over_every_operation_that_fails_once_with_kubernetes,
        netdadm_backup_with_any_operation_failing_leaves_no_half,
        netdadm_etcd_with_any_operation_failing_changes_no_other_member,
    ]);
    suite.with_kubernetes(Release::V1_20).run(tests)
}
