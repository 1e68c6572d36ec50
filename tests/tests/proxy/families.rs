//! The nodes of the tests with IPv6 beside IPv4, and what holds there on either data path.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, Process, echo, eventually};

use super::{Nodes, SERVICES, SOON, ask};

/// Pods of both families, the one of IPv6 first.
pub(crate) const DUAL: [&str; 2] =
    ["--cluster-cidr=fd07::/16,172.7.0.0/16", "--service-cidr=192.168.0.0/16,fd09::/108"];
const ONLY_IPV6: [&str; 2] = ["--cluster-cidr=fd07::/16", "--service-cidr=fd09::/108"];

const WEB6: &str = "[fd09::10]:80";
const DNS6: &str = "[fd09::53]:53";

/// Whom the four Pods see when the client is masqueraded.
const MASQUERADED: [(&str, &str); 4] =
    [("2", "fd07:21::1"), ("3", "fd07:21::1"), ("22.2", "fd04:7::21"), ("22.3", "fd04:7::21")];

/// Gives every machine and Pod an address of IPv6 beside that of IPv4.
pub(crate) fn start() -> Result<Nodes> {
    let nodes = Nodes::start()?;
    for (own, other) in [(21, 22), (22, 21)] {
        let host = nodes.cluster.host(&format!("hdss7-{own}"))?;
        host.run(&["sysctl", "-qw", &format!("net.ipv6.conf.all.forwarding={}", u8::from(own == 22))])?;
        let batch = format!(
            "address add fd04:7::{own}/64 dev eth0 nodad\naddress add fd07:{own}::1/64 dev cbr0 nodad\n\
             route add fd07:{other}::/64 via fd04:7::{other}\nroute add fd09::/108 via fd04:7::200\n"
        );
        host.command("ip").args(["-batch", "-"]).input(batch).run()?;
        for last in [2, 3] {
            let pod = nodes.pod(&format!("172.7.{own}.{last}"))?;
            let batch =
                format!("address add fd07:{own}::{last}/64 dev eth0 nodad\nroute add default via fd07:{own}::1\n");
            pod.command("ip").args(["-batch", "-"]).input(batch).run()?;
        }
    }
    let batch = "address add fd04:7::200/64 dev eth0 nodad\nroute add fd09::/108 via fd04:7::21\n\
        route add fd07:21::/64 via fd04:7::21\nroute add fd07:22::/64 via fd04:7::22\n";
    nodes.outside()?.command("ip").args(["-batch", "-"]).input(batch).run()?;
    for host in ["hdss7-21", "hdss7-22", "hdss7-200"] {
        await_addresses(nodes.cluster.host(host)?)?;
    }
    for pod in ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"] {
        await_addresses(nodes.pod(pod)?)?;
    }
    Ok(nodes)
}

/// Waits until the search for second owners has ended: no neighbour is looked for from a link whose own address is not usable yet, and
/// what is forwarded there is lost.
fn await_addresses(place: &impl Place) -> Result<()> {
    eventually(SOON, || {
        let tentative = place.command("ip".as_ref()).args(["-6", "-o", "address", "show", "tentative"]).run()?.stdout;
        ensure!(tentative.is_empty(), "{tentative}");
        Ok(())
    })
}

pub(crate) fn proxy(nodes: &Nodes, mode: &str, networks: &[&str]) -> Result<Process> {
    let command = nodes.node()?.command(lab::bin("ipvs-proxy")?).arg(format!("--services-dir={SERVICES}"));
    let proxy = command.arg(format!("--proxy-mode={mode}")).args(networks).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    Ok(proxy)
}

/// A slice of one family.
fn slice(service: &str, (family, number): (&str, u8), (port, protocol): (&str, &str), pods: &[&str]) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
         metadata: {{name: {service}-{number}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         ports: [{{name: {port}, port: 80, protocol: {protocol}}}]\nendpoints:\n"
    );
    for pod in pods {
        text.push_str(&format!("- addresses: [\"{pod}\"]\n"));
    }
    text
}

const PODS: [&str; 4] = ["fd07:21::2", "fd07:21::3", "fd07:22::2", "fd07:22::3"];

pub(crate) fn web(addresses: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{addresses}, ipFamilyPolicy: {policy}, \
         ports: [{{name: http, port: 80}}]}}\n{}{}",
        slice("web", ("IPv4", 4), ("http", "TCP"), &["172.7.21.2", "172.7.22.2"]),
        slice("web", ("IPv6", 6), ("http", "TCP"), &PODS)
    )
}

/// Who answers at `server` and whom it saw, over 60 connections.
fn answers(from: &impl Place, server: &str) -> Result<BTreeSet<(String, String)>> {
    let server: SocketAddr = server.parse()?;
    let one = |_| {
        let answer = echo::ask_tcp(from, server, SOON)?;
        Ok((answer.name, answer.client.ip().to_string()))
    };
    (0..60).map(one).collect()
}

fn expected(seen: [(&str, &str); 4]) -> BTreeSet<(String, String)> {
    let name = |last: &str| if last.contains('.') { format!("172.7.{last}") } else { format!("172.7.21.{last}") };
    seen.map(|(last, client)| (name(last), client.to_owned())).into()
}

fn ensure_ipv6_is_served(nodes: &Nodes) -> Result<()> {
    let found = answers(nodes.node()?, WEB6)?;
    ensure!(found == expected(MASQUERADED), "from the node: {found:?}");
    // Neighbours are found again: nothing of ours touches their discovery.
    for host in [nodes.node()?, nodes.outside()?] {
        host.run(&["ip", "-6", "neigh", "flush", "all"])?;
    }
    let found = answers(nodes.outside()?, WEB6)?;
    ensure!(found == expected(MASQUERADED), "from outside: {found:?}");
    let mut kept = MASQUERADED.map(|(pod, _)| (pod, "fd07:21::2"));
    // A Pod keeps its address, except towards itself.
    kept[0].1 = "fd07:21::1";
    let found = answers(nodes.pod("172.7.21.2")?, WEB6)?;
    ensure!(found == expected(kept), "from a Pod: {found:?}");
    Ok(())
}

/// Both addresses of a Service with two families are served, each by the endpoints of its family.
pub(crate) fn both_families_of_a_service_are_served(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish(
        "web.yaml",
        &web("clusterIP: 192.168.0.10, clusterIPs: [192.168.0.10, \"fd09::10\"]", "RequireDualStack"),
    )?;
    let _proxy = proxy(&nodes, mode, &DUAL)?;
    ensure_ipv6_is_served(&nodes)?;
    let found = answers(nodes.outside()?, super::WEB)?;
    let both = [("172.7.21.2", "172.7.21.1"), ("172.7.22.2", "10.4.7.21")];
    ensure!(found == both.map(|(pod, client)| (pod.to_owned(), client.to_owned())).into(), "IPv4: {found:?}");
    let forwarding = nodes.node()?.run(&["sysctl", "-n", "net.ipv6.conf.all.forwarding"])?.stdout;
    ensure!(forwarding.trim() == "1", "{forwarding}");
    let status = nodes.status()?;
    ensure!(status["notServed"] == serde_json::json!([]), "{status}");
    ensure!(echo::ask_tcp(nodes.outside()?, "[fd09::10]:81".parse()?, SOON).is_err(), "a port that no Service has");
    Ok(())
}

/// A node whose Pods have addresses of IPv6 only serves that, and has no table of the other family.
pub(crate) fn ipv6_alone_is_served(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &web("clusterIP: \"fd09::10\"", "SingleStack"))?;
    let proxy = self::proxy(&nodes, mode, &ONLY_IPV6)?;
    ensure_ipv6_is_served(&nodes)?;
    let tables = nodes.node()?.run(&["nft", "list", "tables"])?.stdout;
    ensure!(tables.trim() == "table ip6 ipvs-proxy", "{tables}");
    // Started again it finds what it left.
    ensure!(proxy.terminate(SOON)?.success());
    let before = nodes.node()?.run(&["nft", "-s", "list", "ruleset"])?.stdout;
    let _proxy = self::proxy(&nodes, mode, &ONLY_IPV6)?;
    let after = nodes.node()?.run(&["nft", "-s", "list", "ruleset"])?.stdout;
    ensure!(before.lines().collect::<BTreeSet<_>>() == after.lines().collect(), "{before}\n{after}");
    ensure_ipv6_is_served(&nodes)
}

fn dns(pods: &[&str]) -> String {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: dns}\nspec: {clusterIP: \"fd09::53\", \
        ports: [{name: dns, port: 53, protocol: UDP}]}\n";
    service.to_owned() + &slice("dns", ("IPv6", 6), ("dns", "UDP"), pods)
}

/// A flow of datagrams over IPv6 moves on when its endpoint goes.
pub(crate) fn a_flow_over_ipv6_moves_on_when_its_endpoint_goes(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("dns.yaml", &dns(&["fd07:21::3", "fd07:22::2"]))?;
    let _proxy = proxy(&nodes, mode, &DUAL)?;
    let socket = nodes.pod("172.7.21.2")?.within(|| {
        let socket = UdpSocket::bind(("::", 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(DNS6)?;
        Ok::<_, std::io::Error>(socket)
    })??;
    let first = ask(&socket)?;
    ensure!(ask(&socket)? == first, "a flow stays with its endpoint");
    let (left, name) = if first == "172.7.21.3" { ("fd07:22::2", "172.7.22.2") } else { ("fd07:21::3", "172.7.21.3") };
    nodes.publish("dns.yaml", &dns(&[left]))?;
    eventually(SOON, || {
        let answer = ask(&socket).context("after the change")?;
        ensure!(answer == name, "{answer}");
        Ok(())
    })
}

/// The endpoint that answers all of 20 connections of a client.
fn only_answer(from: &impl Place) -> Result<String> {
    let names: BTreeSet<_> = answers(from, WEB6)?.into_iter().map(|(name, _)| name).collect();
    ensure!(names.len() == 1, "{names:?}");
    names.into_iter().next().context("nobody was asked")
}

/// A client of IPv6, known by its whole address, stays with its endpoint until that goes.
pub(crate) fn clients_over_ipv6_stay_with_their_endpoint_until_it_goes(mode: &str) -> Result<()> {
    let nodes = start()?;
    let sticky = |pods: &[&str]| {
        let spec = "clusterIP: \"fd09::10\", sessionAffinity: ClientIP, ports: [{name: http, port: 80}]";
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n")
            + &slice("web", ("IPv6", 6), ("http", "TCP"), pods)
    };
    nodes.publish("web.yaml", &sticky(&PODS))?;
    let _proxy = proxy(&nodes, mode, &DUAL)?;
    let gone = only_answer(nodes.outside()?).context("from outside")?;
    let of_pod = only_answer(nodes.pod("172.7.21.2")?).context("from a Pod")?;
    let left: Vec<&str> = PODS.into_iter().filter(|pod| name_of(pod) != gone).collect();
    nodes.publish("web.yaml", &sticky(&left))?;
    let moved = eventually(SOON, || {
        let name = only_answer(nodes.outside()?).context("from outside, behind the change")?;
        ensure!(name != gone, "{name} answers still");
        Ok(name)
    })?;
    ensure!(only_answer(nodes.outside()?)? == moved);
    ensure!(of_pod == gone || only_answer(nodes.pod("172.7.21.2")?)? == of_pod, "a client of another endpoint moved");
    Ok(())
}

/// The name by which a Pod answers.
fn name_of(pod: &str) -> String {
    pod.replace("fd07:", "172.7.").replace("::", ".")
}

/// Pods of IPv6 are known by the bridge that they are behind; no Pod network is said.
pub(crate) fn pods_of_ipv6_are_known_by_their_interface(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &web("clusterIP: \"fd09::10\"", "SingleStack"))?;
    for flags in [
        [DUAL[1], "--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"],
        [DUAL[1], "--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cb"],
    ] {
        let proxy = proxy(&nodes, mode, &flags)?;
        ensure_ipv6_is_served(&nodes).with_context(|| flags.join(" "))?;
        proxy.terminate(SOON)?;
    }
    Ok(())
}
