//! netd and an etcd that is spoken to over TLS with client certificates: the system's roots, and files that are renewed.

mod netd_node;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cluster, Host, Need, Process, Topology, eventually};
use netd_node::tls::{ENDPOINT, FOLDER, etcd, put, renew};
use netd_node::{HOST_GW, SOON, lease};

/// Certificates last for so many days.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn put_lease(host: &Host, n: u8) -> Result<()> {
    put(host, &format!("/coreos.com/network/subnets/172.7.{n}.0-24"), &lease(&format!("10.4.7.{n}"), "host-gw"))
}

fn eventually_routes(host: &Host, subnet: &str) -> Result<()> {
    eventually(SOON, || {
        let routes = host.run(&["ip", "route", "show", "proto", "121"])?.stdout;
        ensure!(routes.contains(subnet), "no route to {subnet}: {routes}");
        Ok(())
    })
}

/// netd with its own certificate; it knows the CA by this flag or variable.
fn netd(host: &Host, ca: Option<&str>, roots: Option<&str>) -> Result<Process> {
    let mut command = host.command(lab::bin("netd")?).args([
        &format!("--etcd-endpoints={ENDPOINT}"),
        &format!("--etcd-certfile={FOLDER}/own.pem"),
        &format!("--etcd-keyfile={FOLDER}/own.key"),
        "--iface=eth0",
    ]);
    command = match ca {
        Some(ca) => command.args([format!("--etcd-cafile={FOLDER}/{ca}")]),
        None => command,
    };
    match roots {
        Some(roots) => command.env("SSL_CERT_FILE", format!("{FOLDER}/{roots}")),
        None => command,
    }
    .start("netd")
}

fn certificates_renewed_on_the_disk_cost_no_route_and_are_used() -> Result<()> {
    let cluster = Cluster::start(&Topology::reference()?)?;
    let (store, node) = (cluster.host("hdss7-12")?, cluster.host("hdss7-21")?);
    renew([store, node], YEAR)?;
    let mut member = etcd(store)?;
    put(store, "/coreos.com/network/config", HOST_GW)?;
    put_lease(store, 22)?;
    let netd = netd(node, Some("ca.pem"), None)?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    eventually_routes(node, "172.7.22.0/24")?;
    for n in [23, 24] {
        // CA, server and client certificates are others now; nothing but etcd is started again.
        renew([store, node], YEAR)?;
        member.kill()?;
        member = etcd(store)?;
        put_lease(store, n)?;
        eventually_routes(node, &format!("172.7.{n}.0/24"))?;
        eventually_routes(node, "172.7.22.0/24")?;
    }
    ensure!(netd.is_running());
    Ok(())
}

fn authority_among_the_systems_roots_is_believed_and_another_one_is_not() -> Result<()> {
    let cluster = Cluster::start(&Topology::reference()?)?;
    let (store, node) = (cluster.host("hdss7-12")?, cluster.host("hdss7-21")?);
    renew([store, node], YEAR)?;
    let _member = etcd(store)?;
    put(store, "/coreos.com/network/config", HOST_GW)?;
    let stranger = netd(node, None, Some("own.pem"))?;
    let line = stranger.wait_for_line("waiting: ", SOON)?;
    ensure!(line.contains("invalid peer certificate"), "{line}");
    stranger.terminate(SOON)?;
    let netd = netd(node, None, Some("ca.pem"))?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            certificates_renewed_on_the_disk_cost_no_route_and_are_used,
            authority_among_the_systems_roots_is_believed_and_another_one_is_not,
        ],
    )
}
