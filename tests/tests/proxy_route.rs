//! Whole Service networks by one local route each, in place of an address for each Service.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Need, Place, Process, echo, eventually};
use proxy::{Kept, Nodes, SOON, WEB, WEB_YAML, away, families, slice};

const FILE: &str = "/run/kube-proxy.yaml";
/// How long a client waits for an answer that shall not come.
const SILENCE: Duration = Duration::from_secs(1);
/// An address of each Service network that nobody has.
const NOBODYS: [&str; 2] = ["192.168.7.7:80", "[fd09::7:7]:80"];
const WEB6: &str = "[fd09::10]:80";

/// The routes of ours, of both families.
fn routes(node: &Host) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let text = node.run(&["ip", family, "route", "show", "table", "local", "proto", "122"])?.stdout;
        found.extend(text.lines().map(|line| line.split(" metric").next().unwrap_or_default().trim().to_owned()));
    }
    Ok(found)
}

/// The addresses of the link of virtual addresses.
fn virtual_addresses(node: &Host) -> Result<BTreeSet<String>> {
    let text = node.run(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?.stdout;
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect())
}

/// Waits until these routes and addresses are all that there are, and the daemon says that all is in place.
fn await_held(nodes: &Nodes, limit: Duration, routed: &[&str], addresses: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = addresses.iter().map(|text| (*text).to_owned()).collect();
    eventually(limit, || {
        let (found, held) = (routes(nodes.node()?)?, virtual_addresses(nodes.node()?)?);
        ensure!(found == routed && held == wanted, "{found:?} {held:?}");
        Ok(())
    })
}

/// Fails when somebody answers, or says anything, at an address that nobody has.
fn ensure_silent(from: &impl Place, server: &str) -> Result<()> {
    let server: SocketAddr = server.parse()?;
    match from.within(|| TcpStream::connect_timeout(&server, SILENCE))? {
        Ok(_) => bail!("somebody answers at {server}"),
        Err(error) => ensure!(error.kind() == ErrorKind::TimedOut, "{server}: {error}"),
    }
    let ping = from.command("ping".as_ref()).args(["-c1", "-W1", &server.ip().to_string()]).output()?;
    ensure!(ping.stdout.contains(" 0 received") && !ping.stdout.contains("exceeded"), "{}", ping.stdout);
    Ok(())
}

fn one_route_of_each_family_serves_every_class_of_clients() -> Result<()> {
    let nodes = families::start()?;
    let addresses = "clusterIP: 192.168.0.10, clusterIPs: [192.168.0.10, \"fd09::10\"], externalIPs: [10.4.7.99]";
    nodes.publish("web.yaml", &families::web(addresses, "RequireDualStack"))?;
    // It would take every connection that nothing else takes.
    let _listener = echo::serve(nodes.node()?, "the node", 80)?;
    let [pods, services] = families::DUAL;
    let _proxy = families::proxy(&nodes, "ipvs", &[pods, services, "--ipvs-local-cidrs=192.168.0.0/16,fd09::/108"])?;
    let wanted = ["local 192.168.0.0/16 dev lo scope host", "local fd09::/108 dev lo"];
    await_held(&nodes, SOON, &wanted, &["10.4.7.99/32"])?;
    let (node, pod, outside) = (nodes.node()?, nodes.pod("172.7.21.2")?, nodes.outside()?);
    for server in [WEB, WEB6] {
        let server: SocketAddr = server.parse()?;
        for name in [
            echo::ask_tcp(outside, server, SOON)?.name,
            echo::ask_tcp(node, server, SOON)?.name,
            echo::ask_tcp(pod, server, SOON)?.name,
        ] {
            ensure!(name.starts_with("172.7."), "{server}: {name}");
        }
        let closed = SocketAddr::new(server.ip(), 81);
        let refused = outside.within(|| TcpStream::connect_timeout(&closed, SOON))?.err().context("it is open")?;
        ensure!(refused.kind() == ErrorKind::ConnectionRefused, "a port that no Service has: {refused}");
    }
    for server in NOBODYS {
        ensure_silent(outside, server)?;
        ensure_silent(pod, server)?;
    }
    let explained = node.command(lab::bin("ipvs-proxy")?).args(["explain", WEB, "--from", "10.4.7.200"]).run()?.stdout;
    ensure!(explained.contains("in place    route 192.168.0.0/16"), "{explained}");
    let status = nodes.status()?;
    let table = status["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["name"] == "route"));
    let done = table.map(|table| table["done"].clone());
    ensure!(status["ok"] == true && done == Some(2.into()), "{status}");
    Ok(())
}

/// Writes the configuration whole and at once, as an editor does.
fn configure(nodes: &Nodes, mode: &str, networks: &str) -> Result<()> {
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\nclusterCIDR: 172.7.0.0/16\n\
         conntrack: {{maxPerCore: 0, min: 0}}\nipvs: {{localCIDRs: [{networks}]}}\n"
    );
    nodes.node()?.write("/run/kube-proxy.new", text)?;
    nodes.node()?.run(&["mv", "/run/kube-proxy.new", FILE]).map(drop)
}

fn start(nodes: &Nodes, networks: &str) -> Result<Process> {
    configure(nodes, "ipvs", networks)?;
    nodes.proxy_with(&[&format!("--config={FILE}")])
}

/// A change of the file, and what is local then.
type Turn = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const WHOLE: &[&str] = &["local 192.168.0.0/16 dev lo scope host"];
const OWN: &[&str] = &["192.168.0.10/32"];

const TURNS: [Turn; 6] = [
    ("ipvs", "192.168.0.0/16", WHOLE, &[]),
    ("ipvs", "", &[], OWN),
    (
        "ipvs",
        "192.168.0.0/24, 10.96.0.0/12",
        &["local 10.96.0.0/12 dev lo scope host", "local 192.168.0.0/24 dev lo scope host"],
        &[],
    ),
    ("ipvs", "192.168.128.0/17", &["local 192.168.128.0/17 dev lo scope host"], OWN),
    ("nftables", "192.168.0.0/16", &[], &[]),
    ("ipvs", "192.168.0.0/16", WHOLE, &[]),
];

fn the_networks_change_on_a_live_node_without_a_failed_connection() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = start(&nodes, "")?;
    await_held(&nodes, SOON, &[], OWN)?;
    let mut kept = Kept::open(nodes.outside()?)?;
    let served_by = kept.ask()?;
    let (ended, server) = (AtomicBool::new(false), WEB.parse::<SocketAddr>()?);
    let asked = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut asked = 0;
            while !ended.load(Ordering::Relaxed) {
                echo::ask_tcp(nodes.outside()?, server, SOON)?;
                asked += 1;
            }
            Ok::<usize, anyhow::Error>(asked)
        });
        let turned = TURNS.iter().try_for_each(|(mode, networks, routed, addresses)| {
            configure(&nodes, mode, networks)?;
            if *mode == "nftables" {
                proxy::configured::await_mode(&nodes, mode)?;
            } else {
                await_held(&nodes, SOON, routed, addresses).with_context(|| format!("{mode} {networks}"))?;
            }
            ensure!(kept.ask()? == served_by, "the open connection goes on");
            Ok(())
        });
        ended.store(true, Ordering::Relaxed);
        let asked = client.join().unwrap();
        turned.and(asked)
    })?;
    ensure!(asked > 5, "only {asked} connections were made");
    Ok(())
}

fn a_deleted_route_is_back_within_a_second_and_cleanup_takes_it_away() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = start(&nodes, "192.168.0.0/16")?;
    await_held(&nodes, SOON, WHOLE, &[])?;
    let node = nodes.node()?;
    let limit = away(node)?;
    node.run(&["ip", "route", "flush", "table", "local", "proto", "122"])?;
    await_held(&nodes, limit, WHOLE, &[])?;
    node.run(&["ip", "route", "replace", "local", "192.168.0.0/16", "dev", "eth0", "table", "local"])?;
    await_held(&nodes, limit, WHOLE, &[])?;
    let mut kept = Kept::open(nodes.outside()?)?;
    kept.ask()?;
    // A network of this node in the Service network is no part of it.
    node.run(&["ip", "address", "add", "192.168.128.1/17", "dev", "eth0"])?;
    await_held(&nodes, SOON, &["local 192.168.0.0/17 dev lo scope host"], &[])?;
    kept.ask()?;
    proxy.terminate(SOON)?;
    ensure!(routes(node)?.len() == 1, "an ordinary end takes nothing away");
    let doctor = node.command(lab::bin("ipvs-proxy")?).arg("doctor").output()?.stdout;
    ensure!(doctor.contains("the networks that are to be local are"), "{doctor}");
    node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?;
    ensure!(routes(node)?.is_empty(), "{:?}", routes(node)?);
    Ok(())
}

fn a_service_that_goes_leaves_nobody_at_its_local_address() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", &format!("{}---\n{}", proxy::WEB_SERVICE, slice(&["172.7.22.2"])))?;
    let _listener = echo::serve(nodes.node()?, "the node", 80)?;
    let _proxy = start(&nodes, "192.168.0.0/16")?;
    let server: SocketAddr = WEB.parse()?;
    ensure!(echo::ask_tcp(nodes.outside()?, server, SOON)?.name == "172.7.22.2");
    nodes.node()?.run(&["rm", "/run/services/web.yaml"])?;
    eventually(SOON, || ensure_silent(nodes.outside()?, WEB))?;
    nodes.publish("web.yaml", &format!("{}---\n{}", proxy::WEB_SERVICE, slice(&["172.7.21.3"])))?;
    eventually(SOON, || {
        let name = echo::ask_tcp(nodes.outside()?, server, SILENCE)?.name;
        ensure!(name == "172.7.21.3", "{name}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Dummy, Need::Nftables],
        lab::tests![
            one_route_of_each_family_serves_every_class_of_clients,
            the_networks_change_on_a_live_node_without_a_failed_connection,
            a_deleted_route_is_back_within_a_second_and_cleanup_takes_it_away,
            a_service_that_goes_leaves_nobody_at_its_local_address,
        ],
    )
}
