//! What changes without a word about the tables: files, parameters, names. All of it is back within a second.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Host, Need, allowing_for_load, eventually};
use netd_node::traffic::Traffic;
use netd_node::{A_SECOND, HOST_GW, Net, SOON, VXLAN, kernel_state, pod, settled_log};

const FILE: &str = "/run/flannel/subnet.env";

/// The kernel parameter has this value; read by a process of the host, for whose network it is shown.
fn is(host: &Host, parameter: &str, wanted: &str) -> Result<()> {
    let value = host.run(&["cat", &format!("/proc/sys/net/{parameter}")])?.stdout;
    ensure!(value.trim() == wanted, "{parameter} is {value}");
    Ok(())
}

/// What `blow` breaks is right again within a second of it.
fn eventually_right(host: &Host, blow: &str, right: impl Fn() -> Result<()>) -> Result<()> {
    host.run(&["sh", "-ec", blow])?;
    let begun = Instant::now();
    eventually(SOON, &right)?;
    let took = begun.elapsed();
    eprintln!("{blow}: {} ms", took.as_millis());
    ensure!(took < allowing_for_load(A_SECOND), "{blow}: right again after {took:?}");
    Ok(())
}

fn subnet_file_is_back_within_a_second_whatever_becomes_of_it() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let netd = net.netd("hdss7-21")?;
    let host = net.host("hdss7-21")?;
    let whole = host.read(FILE)?;
    let right = || {
        let now = host.read(FILE)?;
        ensure!(now == whole, "{now:?}");
        Ok(())
    };
    for blow in ["rm subnet.env", "echo FLANNEL_SUBNET=junk > subnet.env", "rm -rf /run/flannel"] {
        eventually_right(host, &format!("cd /run/flannel; {blow}"), right)?;
    }
    // Who keeps at it is named, and met ever more slowly.
    for _ in 0..3 {
        host.run(&["sh", "-ec", "echo >> /run/flannel/subnet.env"])?;
        eventually(SOON, right)?;
    }
    netd.wait_for_line("somebody else keeps changing /run/flannel/subnet.env", SOON)?;
    Ok(())
}

fn parameters_are_back_within_a_second() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    for _ in 0..3 {
        eventually_right(host, "sysctl -qw net.ipv4.ip_forward=0", || is(host, "ipv4/ip_forward", "1"))?;
        let accepts = || is(host, "ipv6/conf/flannel.1/accept_ra", "0");
        eventually_right(host, "echo 2 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra", accepts)?;
        // A device that is made anew has parameters of its own, which are watched as well.
        host.run(&["ip", "link", "del", "flannel.1"])?;
        eventually(SOON, accepts)?;
    }
    // By another mount of /proc, as from a container.
    let other = "unshare -m sh -c 'mount -t tmpfs none /mnt && mount -t proc none /mnt && echo 0 > /mnt/sys/net/ipv4/ip_forward'";
    eventually_right(host, other, || is(host, "ipv4/ip_forward", "1"))
}

fn renamed_device_gets_its_name_back_under_the_traffic() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    let (web, server) = (pod(host, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let (before, index) = (kernel_state(host)?, host.read("/sys/class/net/flannel.1/ifindex")?);
    let traffic = Traffic::start(web, &server, "172.7.22.2")?;
    let right = || {
        let now = kernel_state(host)?;
        ensure!(now == before, "{now}");
        Ok(())
    };
    for blow in [
        "ip link set flannel.1 down; ip link set flannel.1 name renamed",
        "ip link set flannel.1 down; ip link set flannel.1 name renamed up",
        "ip link set flannel.1 name renamed 2>/dev/null || true",
    ] {
        eventually_right(host, blow, right)?;
        traffic.flows()?;
    }
    traffic.stop()?;
    ensure!(host.read("/sys/class/net/flannel.1/ifindex")? == index, "the device was made anew");
    Ok(())
}

fn foreign_device_of_the_same_tunnel_network_is_named_and_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    host.run(&["ip", "link", "add", "theirs", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "eth0"])?;
    let netd = net.launch("hdss7-21", &[])?;
    let line = netd.wait_for_line("device theirs has its VNI and UDP port", SOON)?;
    ensure!(line.contains("flannel.1"), "{line}");
    host.run(&["ip", "link", "show", "theirs"])?;
    host.run(&["ip", "link", "del", "theirs"])?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    Ok(())
}

/// Lines of the log that say that something is wrong.
fn warnings(netd: &lab::Process) -> usize {
    netd.log().lines().filter(|line| line.contains(" WARN ")).count()
}

fn failure_that_goes_on_is_one_line_however_many_pods_come_and_go() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let netd = net.netd("hdss7-21")?;
    for n in [30, 31, 32] {
        net.put_lease(&format!("172.7.{n}.0-24"), &format!("192.168.44.{n}"), "host-gw")?;
    }
    for n in [30, 31, 32] {
        netd.wait_for_line(&format!("via 192.168.44.{n} dev eth0"), SOON)?;
    }
    settled_log(&netd)?;
    let before = warnings(&netd);
    let host = net.host("hdss7-21")?;
    let refusals = || -> Result<u64> {
        let curl = ["-s", "--unix-socket", "/run/netd/http.sock", "http://netd/metrics"];
        let page = host.command("curl").args(curl).run()?.stdout;
        let counts = page.lines().filter(|line| line.starts_with("netd_kernel_errors_total"));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    };
    for pod in 0..20 {
        let seen = refusals()?;
        host.run(&["ip", "link", "add", &format!("veth{pod}"), "type", "veth", "peer", "name", &format!("peer{pod}")])?;
        eventually(SOON, || {
            ensure!(refusals()? >= seen + 3, "the routes were not tried again");
            Ok(())
        })?;
    }
    settled_log(&netd)?;
    ensure!(warnings(&netd) == before, "{} warnings more\n{}", warnings(&netd) - before, netd.log());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            subnet_file_is_back_within_a_second_whatever_becomes_of_it,
            parameters_are_back_within_a_second,
            renamed_device_gets_its_name_back_under_the_traffic,
            foreign_device_of_the_same_tunnel_network_is_named_and_stays,
            failure_that_goes_on_is_one_line_however_many_pods_come_and_go,
        ],
    )
}
