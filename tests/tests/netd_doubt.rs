//! A store that shows too little: nothing is removed on one word.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Need, eventually, throughout};
use netd_node::dual::{self, DUAL, DUAL_HOST_GW};
use netd_node::{HOST_GW, Left, Net, SOON, VXLAN, kernel_state, lease_replaces_what_is_in_doubt};
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

/// While netd runs, and while it does not.
fn own_key_overwritten_with_junk_is_claimed_again_with_the_same_subnet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let (key, host) = ("/coreos.com/network/subnets/172.7.21.0-24", net.host("hdss7-21")?);
    let [mut first, _second] = net.both()?;
    let (state, before) = (kernel_state(host)?, net.etcd.get(key)?);
    let is_back = || {
        eventually(SOON, || {
            ensure!(net.etcd.get(key)? == before, "{:?}", net.etcd.get(key)?);
            ensure!(net.subnets()? == ["172.7.21.0-24", "172.7.22.0-24"], "{:?}", net.subnets()?);
            ensure!(net.etcd.keys(key)?.len() == 1);
            Ok(())
        })?;
        net.eventually_routes("hdss7-22", "172.7.21.0/24")
    };
    for value in ["", "null", "{}", r#"{"PublicIP":"10.4.7.2"#, r#"{"PublicIP":"10.4.7.21","BackendType":"vxlan"}"#] {
        net.etcd.etcdctl(&["put", key, "--", value])?;
        is_back()?;
        ensure!(kernel_state(host)? == state, "{}", kernel_state(host)?);
    }
    first.terminate(SOON)?;
    net.etcd.put(key, "junk")?;
    first = net.netd("hdss7-21")?;
    is_back()?;
    ensure!(kernel_state(host)? == state && first.is_running(), "{}", kernel_state(host)?);
    Ok(())
}

/// What flannel left on hdss7-21 in both families.
const LEFT: [Left; 2] = [
    Left { named: "172.7.22.0/24", unnamed: "172.7.44.0/24" },
    Left { named: "fd00:7:0:22::/64", unnamed: "fd00:7:0:44::/64" },
];

fn predecessors_routes_that_a_lease_names_are_replaced_though_the_store_is_in_doubt() -> Result<()> {
    let key = "172.7.22.0-24&fd00:7:0:22::-64";
    let by_hand = "for n in 22 44; do ip route add 172.7.$n.0/24 via 10.4.7.$n
                   ip -6 route add fd00:7:0:$n::/64 via fd00:10:4:7::$n dev eth0; done";
    let lease = r#"{"PublicIP":"10.4.7.22","PublicIPv6":"fd00:10:4:7::22","BackendType":"host-gw"}"#;
    lease_replaces_what_is_in_doubt(&dual::net(DUAL_HOST_GW)?, by_hand, (key, lease), &LEFT)?;
    let devices = "ip link add flannel.1 address 02:00:00:00:00:21 mtu 1450 type vxlan id 1 local 10.4.7.21 dev eth0 dstport 8472 nolearning
                   ip link add flannel-v6.1 address 02:00:00:00:06:21 mtu 1430 type vxlan id 1 local fd00:10:4:7::21 dev eth0 \
                     dstport 8472 nolearning
                   ip link set flannel.1 up; ip link set flannel-v6.1 up
                   ip address add 172.7.21.0/32 dev flannel.1; ip address add fd00:7:0:21::/128 dev flannel-v6.1 nodad
                   for n in 22 44; do ip route add 172.7.$n.0/24 via 172.7.$n.0 dev flannel.1 onlink
                     ip -6 route add fd00:7:0:$n::/64 via fd00:7:0:$n:: dev flannel-v6.1 onlink; done";
    let lease = r#"{"PublicIP":"10.4.7.22","PublicIPv6":"fd00:10:4:7::22","BackendType":"vxlan",
        "BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:22"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:22"}}"#;
    lease_replaces_what_is_in_doubt(&dual::net(DUAL)?, devices, (key, lease), &LEFT)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            burst_of_deletions_costs_no_route_of_nodes_that_live,
            junk_in_an_emptied_store_makes_nobody_believe_it,
            store_restored_from_a_backup_is_noticed_though_it_has_passed_our_revision,
            values_overwritten_with_junk_cost_no_route,
            own_key_overwritten_with_junk_is_claimed_again_with_the_same_subnet,
            predecessors_routes_that_a_lease_names_are_replaced_though_the_store_is_in_doubt,
        ],
    )
}
