//! net-conf changes in etcd while nodes run, with Pods that talk all the while.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Need, eventually};
use netd_node::traffic::Traffic;
use netd_node::{HOST_GW, Net, SOON, VXLAN, kernel_state, lease, pod};

const CONFIG: &str = "/coreos.com/network/config";
const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// Long enough for the grace time of an old data path.
const MOVED: Duration = Duration::from_secs(60);

fn eventually_backend(net: &Net, backend: &str) -> Result<()> {
    eventually(MOVED, || {
        for node in NODES {
            let status = net.status(node)?;
            ensure!(status["node"]["backend"] == backend && status["node"]["in_sync"] == true, "{node}: {status}");
            ensure!(status["warnings"].as_array().is_some_and(Vec::is_empty), "{node}: {}", status["warnings"]);
        }
        Ok::<_, anyhow::Error>(())
    })
}

fn has_device(net: &Net, node: &str) -> Result<bool> {
    Ok(net.host(node)?.run(&["ip", "-br", "link", "show", "type", "vxlan"])?.stdout.contains("flannel.1"))
}

/// From one backend to another with a connection and datagrams from Pod to Pod: none is lost.
fn changes(from: &str, to: &str) -> Result<Net> {
    let net = Net::start(from)?;
    let netd = net.both()?;
    let (one, other) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(one, &other, "172.7.22.2")?;
    net.etcd.put(CONFIG, to)?;
    eventually_backend(&net, if to == VXLAN { "vxlan" } else { "host-gw" })?;
    for node in NODES {
        ensure!(has_device(&net, node)? == (to == VXLAN), "{node}: {}", kernel_state(net.host(node)?)?);
    }
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    ensure!(netd.iter().all(lab::Process::is_running));
    Ok(net)
}

fn vxlan_becomes_host_gw_without_a_lost_packet() -> Result<()> {
    let net = changes(VXLAN, HOST_GW)?;
    for node in ["21", "22"] {
        let value = net.etcd.get(&format!("/coreos.com/network/subnets/172.7.{node}.0-24"))?;
        ensure!(value == Some(lease(&format!("10.4.7.{node}"), "host-gw")), "{value:?}");
    }
    eventually(SOON, || {
        let file = net.host(NODES[0])?.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_MTU=1500\n"), "{file}");
        Ok(())
    })
}

fn host_gw_becomes_vxlan_without_a_lost_packet() -> Result<()> {
    let net = changes(HOST_GW, VXLAN)?;
    eventually(SOON, || {
        let file = net.host(NODES[0])?.read("/run/flannel/subnet.env")?;
        ensure!(file.contains("FLANNEL_MTU=1450\n"), "{file}");
        Ok(())
    })
}

/// The configuration goes there and back while the first change is still under way.
fn change_that_is_taken_back_at_once_loses_nothing() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (one, other) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(one, &other, "172.7.22.2")?;
    for config in [HOST_GW, VXLAN, HOST_GW, VXLAN] {
        net.etcd.put(CONFIG, config)?;
        let backend = if config == VXLAN { "vxlan" } else { "host-gw" };
        eventually(SOON, || {
            let status = net.status(NODES[0])?;
            ensure!(status["node"]["backend"] == backend, "{status}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    eventually_backend(&net, "vxlan")?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    Ok(())
}

/// A flannel node never moves by itself: both data paths stay for it, over restarts too, until its lease says otherwise.
fn old_data_path_stays_for_a_node_that_does_not_move() -> Result<()> {
    let net = Net::start(VXLAN)?;
    net.put_lease("172.7.99.0-24", "10.4.7.99", "02:00:00:00:00:99")?;
    let [first, _second] = net.both()?;
    net.eventually_routes(NODES[0], "172.7.99.0/24")?;
    net.etcd.put(CONFIG, HOST_GW)?;
    let settled = |net: &Net| {
        eventually(SOON, || {
            let state = kernel_state(net.host(NODES[0])?)?;
            ensure!(state.contains("172.7.99.0/24 via 172.7.99.0 dev flannel.1"), "{state}");
            ensure!(state.contains("172.7.22.0/24 via 10.4.7.22 dev eth0"), "{state}");
            let warnings = net.status(NODES[0])?["warnings"].to_string();
            ensure!(
                warnings.contains("backend vxlan stays beside host-gw until 1 nodes more use host-gw"),
                "{warnings}"
            );
            Ok::<_, anyhow::Error>(())
        })
    };
    settled(&net)?;
    // The node that stays sends to this address.
    let address = || net.host(NODES[0])?.read("/sys/class/net/flannel.1/address");
    let before = address()?;
    first.terminate(SOON)?;
    let again = net.launch(NODES[0], &[])?;
    again.wait_for_line("ready: every lease is in the kernel", SOON)?;
    settled(&net)?;
    ensure!(address()? == before, "flannel.1 has another hardware address since the restart");
    net.put_lease("172.7.99.0-24", "10.4.7.99", "host-gw")?;
    eventually_backend(&net, "host-gw")?;
    eventually(SOON, || {
        ensure!(!has_device(&net, NODES[0])?, "{}", kernel_state(net.host(NODES[0])?)?);
        Ok::<_, anyhow::Error>(())
    })
}

fn options_of_the_backend_are_followed_and_the_device_stays() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (one, other) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(one, &other, "172.7.22.2")?;
    let host = net.host(NODES[0])?;
    let index = host.read("/sys/class/net/flannel.1/ifindex")?;
    net.etcd.put(CONFIG, r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}}"#)?;
    eventually(SOON, || {
        for node in NODES {
            let file = net.host(node)?.read("/run/flannel/subnet.env")?;
            ensure!(file.contains("FLANNEL_MTU=1350\n"), "{file}");
        }
        let state = kernel_state(host)?;
        ensure!(state.contains("172.7.22.0/24 via 10.4.7.22 dev eth0") && state.contains("mtu 1350"), "{state}");
        Ok(())
    })?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    ensure!(host.read("/sys/class/net/flannel.1/ifindex")? == index, "the device was made anew");
    Ok(())
}

fn what_cannot_change_is_reported_and_the_node_runs_on() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let [first, _second] = net.both()?;
    let before = kernel_state(net.host(NODES[0])?)?;
    for (config, reason) in [
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#, "Network: 10.5.0.0/16 instead of 172.7.0.0/16"),
        (r#"{"Network":"172.7.0.0/16","SubnetLen":26}"#, "SubnetLen: 26 instead of 24"),
        (r#"{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}"#, "Backend.Type"),
        ("{", "net-conf: "),
    ] {
        net.etcd.put(CONFIG, config)?;
        eventually(SOON, || {
            let warnings = net.status(NODES[0])?["warnings"].to_string();
            ensure!(warnings.contains(reason) && warnings.contains("runs on with what it had"), "{warnings}");
            Ok::<_, anyhow::Error>(())
        })
        .with_context(|| config)?;
    }
    net.etcd.delete(CONFIG)?;
    first.wait_for_line("it is gone; this node runs on with what it had", SOON)?;
    ensure!(kernel_state(net.host(NODES[0])?)? == before);
    net.etcd.put(CONFIG, VXLAN)?;
    eventually_backend(&net, "vxlan")?;
    ensure!(kernel_state(net.host(NODES[0])?)? == before);
    Ok(())
}

/// The device has another name: both stand until both nodes use the new one.
fn another_vni_is_another_device_without_a_lost_packet() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let _netd = net.both()?;
    let (one, other) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(one, &other, "172.7.22.2")?;
    net.etcd.put(CONFIG, r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#)?;
    eventually(MOVED, || {
        for node in NODES {
            let state = kernel_state(net.host(node)?)?;
            ensure!(state.contains("flannel.7") && !state.contains("flannel.1"), "{node}: {state}");
        }
        Ok(())
    })?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            vxlan_becomes_host_gw_without_a_lost_packet,
            host_gw_becomes_vxlan_without_a_lost_packet,
            change_that_is_taken_back_at_once_loses_nothing,
            old_data_path_stays_for_a_node_that_does_not_move,
            options_of_the_backend_are_followed_and_the_device_stays,
            what_cannot_change_is_reported_and_the_node_runs_on,
            another_vni_is_another_device_without_a_lost_packet,
        ],
    )
}
