//! Backends that change into each other on the lab kernel, which has all of them, with Pods that talk all the while.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Need, eventually};
use netd_node::traffic::Traffic;
use netd_node::{Net, VXLAN, pod};

const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

/// Long enough for the grace time of an old data path on a slow kernel.
const MOVED: Duration = Duration::from_secs(90);

fn every_tunnel_becomes_another_without_a_broken_connection() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let netd = net.both()?;
    let (one, other) = (pod(net.host(NODES[0])?, "172.7.21")?, pod(net.host(NODES[1])?, "172.7.22")?);
    let traffic = Traffic::start(one, &other, "172.7.22.2")?;
    for (backend, device) in
        [("wireguard", "flannel-wg"), ("ipip", "flannel.ipip"), ("wireguard", "flannel-wg"), ("vxlan", "flannel.1")]
    {
        let config = format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        net.etcd.put("/coreos.com/network/config", &config)?;
        eventually(MOVED, || {
            for node in NODES {
                let status = net.status(node)?;
                ensure!(status["node"]["backend"] == backend && status["node"]["in_sync"] == true, "{node}: {status}");
                ensure!(status["warnings"].as_array().is_some_and(Vec::is_empty), "{node}: {}", status["warnings"]);
                let links = net.host(node)?.run(&["ip", "-br", "link"])?.stdout;
                let ours: Vec<&str> = links
                    .lines()
                    .filter_map(|line| line.split([' ', '@']).next())
                    .filter(|name| name.starts_with("flannel"))
                    .collect();
                ensure!(ours == [device], "{node}: {ours:?}");
            }
            Ok::<_, anyhow::Error>(())
        })
        .with_context(|| format!("to {backend}"))?;
    }
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    ensure!(netd.iter().all(lab::Process::is_running));
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::WireGuard, Need::IpIp, Need::Nftables],
        lab::tests![every_tunnel_becomes_another_without_a_broken_connection],
    )
}
