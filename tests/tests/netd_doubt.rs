//! A store that shows too little: nothing is removed on one word.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Need, eventually, throughout};
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state};
use nix::sys::signal::Signal;

fn burst_of_deletions_costs_no_route_of_nodes_that_live() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.put_lease("172.7.98.0-24", "10.4.7.98", "02:00:00:00:00:98")?;
    let [first, _second] = net.both()?;
    let host = net.host("hdss7-21")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    let before = kernel_state(host)?;
    net.etcd.etcdctl(&["del", "--prefix", "/coreos.com/network/subnets/"])?;
    first.wait_for_line("nothing is removed before a second look", SOON)?;
    throughout(Duration::from_secs(3), || {
        let now = kernel_state(host)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })?;
    eventually(SOON, || {
        ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
        Ok(())
    })?;
    // The two that nobody claims again go after the second look, and they alone.
    eventually(Duration::from_secs(60), || {
        let now = kernel_state(host)?;
        ensure!(!now.contains("172.7.99.0") && !now.contains("172.7.98.0") && now.contains("172.7.22.0/24"), "{now}");
        Ok(())
    })
}

fn junk_in_an_emptied_store_makes_nobody_believe_it() -> Result<()> {
    let mut net = Net::start(VXLAN)?;
    let [first, second] = net.both()?;
    first.terminate(SOON)?;
    second.terminate(SOON)?;
    net.etcd.kill("hdss7-12")?;
    net.host("hdss7-12")?.run(&["rm", "-r", "/run/etcd"])?;
    net.etcd.restart("hdss7-12")?;
    net.etcd.put("/coreos.com/network/config", VXLAN)?;
    net.etcd.put("/coreos.com/network/subnets/junk", "{}")?;
    net.etcd.put("/coreos.com/network/subnets/172.7.30.0-24", "not json")?;
    let host = net.host("hdss7-21")?;
    let before = kernel_state(host)?;
    let again = net.launch("hdss7-21", &[])?;
    again.wait_for_line("nothing is removed before a second look", SOON)?;
    throughout(Duration::from_secs(3), || {
        let now = kernel_state(host)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })
}

fn store_restored_from_a_backup_is_noticed_though_it_has_passed_our_revision() -> Result<()> {
    let mut net = Net::start(HOST_GW)?;
    for n in [22, 23, 24, 25] {
        net.put_lease(&format!("172.7.{n}.0-24"), &format!("10.4.7.{n}"), "host-gw")?;
    }
    let netd = net.netd("hdss7-21")?;
    net.etcd.kill("hdss7-12")?;
    net.host("hdss7-12")?.run(&["cp", "-r", "/run/etcd", "/run/backup"])?;
    net.etcd.restart("hdss7-12")?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "host-gw")?;
    net.eventually_routes("hdss7-21", "172.7.99.0/24")?;
    // Nothing is noticed while the store goes back and passes the revision that this node has seen.
    netd.signal(Signal::SIGSTOP)?;
    net.etcd.kill("hdss7-12")?;
    net.host("hdss7-12")?.run(&["sh", "-c", "rm -r /run/etcd && mv /run/backup /run/etcd"])?;
    net.etcd.restart("hdss7-12")?;
    net.put_lease("172.7.98.0-24", "10.4.7.98", "host-gw")?;
    for _ in 0..20 {
        net.etcd.put("/elsewhere", "x")?;
    }
    netd.signal(Signal::SIGCONT)?;
    net.eventually_routes("hdss7-21", "172.7.98.0/24")?;
    let host = net.host("hdss7-21")?;
    eventually(SOON, || {
        let routes = host.run(&["ip", "route"])?.stdout;
        ensure!(!routes.contains("172.7.99.0/24") && routes.contains("172.7.22.0/24"), "{routes}");
        Ok(())
    })
}

fn values_overwritten_with_junk_cost_no_route() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    net.put_lease("172.7.98.0-24", "10.4.7.98", "02:00:00:00:00:98")?;
    let first = net.netd("hdss7-21")?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    let host = net.host("hdss7-21")?;
    let before = kernel_state(host)?;
    let put = |n: u8| net.etcd.put(&format!("/coreos.com/network/subnets/172.7.{n}.0-24"), "junk");
    [22, 98, 99].into_iter().try_for_each(put)?;
    first.wait_for_line("nothing is removed before a second look", SOON)?;
    eventually(SOON, || {
        ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
        Ok(())
    })?;
    throughout(Duration::from_secs(2), || {
        ensure!(kernel_state(host)? == before, "{}\n--- instead of\n{before}", kernel_state(host)?);
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            burst_of_deletions_costs_no_route_of_nodes_that_live,
            junk_in_an_emptied_store_makes_nobody_believe_it,
            store_restored_from_a_backup_is_noticed_though_it_has_passed_our_revision,
            values_overwritten_with_junk_cost_no_route,
        ],
    )
}
