//! The MTU of the interface below, in the configuration and while it changes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lab::{Need, eventually};
use netd_node::{HOST_GW, Net, SOON, kernel_state, pod};

const VXLAN: &str = netd_node::VXLAN;

/// The tunnel device is up with this MTU, its rows stand, and the plugin knows.
fn eventually_carries(net: &Net, mtu: u32) -> Result<()> {
    let host = net.host("hdss7-21")?;
    eventually(SOON, || {
        let link = host.run(&["ip", "-o", "link", "show", "flannel.1"])?.stdout;
        ensure!(link.contains(&format!(" mtu {mtu} ")) && link.contains(",UP"), "{link}");
        let state = kernel_state(host)?;
        for row in ["172.7.22.0/24 via 172.7.22.0 dev flannel.1", "172.7.22.0 dev flannel.1 lladdr", "172.7.21.0/32"] {
            ensure!(state.contains(row), "{state}\nlacks {row}");
        }
        let file = host.read("/run/flannel/subnet.env")?;
        ensure!(file.contains(&format!("FLANNEL_MTU={mtu}\n")), "{file}");
        let status = net.status("hdss7-21")?;
        ensure!(status["node"]["mtu"] == mtu && status["node"]["in_sync"] == true, "{status}");
        Ok(())
    })
}

fn mtu_of_the_interface_is_followed_down_and_up_again() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (web, _other) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let index = net.host("hdss7-21")?.read("/sys/class/net/flannel.1/ifindex")?;
    for mtu in [1400, 1500, 1280, 9000, 1500] {
        net.host("hdss7-21")?.run(&["ip", "link", "set", "eth0", "mtu", &mtu.to_string()])?;
        eventually_carries(&net, mtu - 50)?;
    }
    ensure!(net.host("hdss7-21")?.read("/sys/class/net/flannel.1/ifindex")? == index, "the device was made again");
    web.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    Ok(())
}

fn device_that_is_deleted_or_down_after_the_mtu_fell_comes_up_again() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let host = net.host("hdss7-21")?;
    for blow in [
        "ip link set eth0 mtu 1400; ip link del flannel.1",
        "ip link set flannel.1 down; ip link set eth0 mtu 1300",
        "ip link set eth0 mtu 1200; ip link set flannel.1 down; ip link set flannel.1 mtu 1000",
    ] {
        host.run(&["sh", "-c", blow])?;
        let mtu: u32 = host.read("/sys/class/net/eth0/mtu")?.trim().parse()?;
        eventually_carries(&net, mtu - 50)?;
    }
    Ok(())
}

fn larger_mtu_than_the_interface_has_is_capped_and_reported() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":9000}}"#)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    let netd = net.netd("hdss7-21")?;
    eventually_carries(&net, 1450)?;
    let warnings = net.status("hdss7-21")?["warnings"].to_string();
    ensure!(warnings.contains("9000"), "{warnings}");
    netd.wait_for_line("9000", SOON)?;
    let host = net.host("hdss7-21")?;
    host.run(&["ip", "link", "set", "eth0", "mtu", "9000"])?;
    eventually_carries(&net, 8950)?;
    let warnings = net.status("hdss7-21")?["warnings"].to_string();
    ensure!(!warnings.contains("9000"), "{warnings}");
    Ok(())
}

fn smaller_mtu_than_the_interface_has_is_used_while_it_fits() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    let _netd = net.netd("hdss7-21")?;
    eventually_carries(&net, 1350)?;
    let host = net.host("hdss7-21")?;
    host.run(&["ip", "link", "set", "eth0", "mtu", "1300"])?;
    eventually_carries(&net, 1250)?;
    host.run(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
    eventually_carries(&net, 1350)
}

fn plugin_gets_the_interfaces_mtu_without_a_tunnel() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let _netd = net.netd("hdss7-21")?;
    let host = net.host("hdss7-21")?;
    for mtu in ["1400", "1500"] {
        host.run(&["ip", "link", "set", "eth0", "mtu", mtu])?;
        eventually(SOON, || {
            let file = host.read("/run/flannel/subnet.env")?;
            ensure!(file.contains(&format!("FLANNEL_MTU={mtu}\n")), "{file}");
            Ok(())
        })?;
    }
    Ok(())
}

fn interface_that_carries_nothing_for_a_while_leaves_no_trace() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let netd = net.netd("hdss7-21")?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "02:00:00:00:00:22")?;
    eventually_carries(&net, 1450)?;
    let host = net.host("hdss7-21")?;
    for blow in ["mtu 68", "mtu 100; ip link del flannel.1", "mtu 1279"] {
        host.run(&["sh", "-c", &format!("ip link set eth0 {blow}")])?;
        eventually(SOON, || {
            let status = net.status("hdss7-21")?;
            ensure!(status["node"]["mtu"] != 1450, "{status}");
            Ok(())
        })
        .with_context(|| blow)?;
        host.run(&["ip", "link", "set", "eth0", "mtu", "1500"])?;
        eventually_carries(&net, 1450).with_context(|| blow)?;
    }
    host.run(&["sh", "-c", "ip link set eth0 down; ip link set eth0 name wan; ip link set wan up"])?;
    netd.wait_for_line("this node's address is gone and there is no other", SOON)?;
    let warned = |words: &str| {
        eventually(SOON, || {
            let warnings = net.status("hdss7-21")?["warnings"].to_string();
            ensure!(warnings.contains(words), "{warnings}");
            Ok(())
        })
    };
    warned("this node's address is gone")?;
    host.run(&["sh", "-c", "ip link set wan down; ip link set wan name eth0"])?;
    warned("eth0 is down: no other node is reached")?;
    host.run(&["ip", "link", "set", "eth0", "up"])?;
    eventually_carries(&net, 1450)?;
    eventually(SOON, || {
        let status = net.status("hdss7-21")?;
        ensure!(status["warnings"].as_array().is_some_and(Vec::is_empty), "{status}");
        Ok(())
    })?;
    ensure!(netd.is_running());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            mtu_of_the_interface_is_followed_down_and_up_again,
            device_that_is_deleted_or_down_after_the_mtu_fell_comes_up_again,
            larger_mtu_than_the_interface_has_is_capped_and_reported,
            smaller_mtu_than_the_interface_has_is_used_while_it_fits,
            plugin_gets_the_interfaces_mtu_without_a_tunnel,
            interface_that_carries_nothing_for_a_while_leaves_no_trace,
        ],
    )
}
