//! What Kubernetes' own end-to-end tests ask of a proxy when a Service changes what it is, on both data paths.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Need, Process, echo, eventually};
use proxy::{Nodes, SERVICES, SOON, ask, client};

/// How long a client waits that expects no answer.
const PATIENCE: Duration = Duration::from_secs(2);

const ADDR: &str = "192.168.0.40:80";
const NODE: &str = "10.4.7.21:30040";

/// Nodes with a proxy of each data path in turn. A node reaches a Service's address only where it has some route.
fn by_both(test: fn(&Nodes) -> Result<()>) -> Result<()> {
    for mode in ["nftables", "ipvs"] {
        let (nodes, _proxy) = start(mode)?;
        test(&nodes).with_context(|| format!("by {mode}"))?;
    }
    Ok(())
}

fn start(mode: &str) -> Result<(Nodes, Process)> {
    let nodes = Nodes::start()?;
    nodes.node()?.run(&["mkdir", "-p", SERVICES])?;
    let proxy = nodes.proxy_with(&[&format!("--proxy-mode={mode}")])?;
    Ok((nodes, proxy))
}

/// The Service `web` with this specification and two endpoints. Who writes the slices gives them the Service's label.
fn web(labels: &str, spec: &str) -> String {
    let slice = if labels.is_empty() { String::new() } else { format!(", {labels}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, labels: {{{labels}}}}}\nspec: {{{spec}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web{slice}}}}}\n\
         ports: [{{name: http, port: 80}}, {{name: other, port: 80}}, {{name: dns, port: 80, protocol: UDP}}]\n\
         endpoints:\n- addresses: [172.7.21.3]\n- addresses: [172.7.22.3]\n"
    )
}

const CLUSTER_IP: &str = "clusterIP: 192.168.0.40, ports: [{name: http, port: 80}]";
const NODE_PORT: &str = "type: NodePort, clusterIP: 192.168.0.40, ports: [{name: http, port: 80, nodePort: 30040}]";
const EXTERNAL_NAME: &str = "type: ExternalName, externalName: web.example.org";

/// Waits until clients outside and in a Pod are answered there.
fn up(nodes: &Nodes, to: &str) -> Result<()> {
    let server: SocketAddr = to.parse()?;
    eventually(SOON, || {
        echo::ask_tcp(nodes.outside()?, server, SOON)?;
        echo::ask_tcp(nodes.pod("172.7.21.2")?, server, SOON).map(drop)
    })
    .with_context(|| format!("{to} is down"))
}

/// Waits until nobody is answered there.
fn down(nodes: &Nodes, to: &str) -> Result<()> {
    let server: SocketAddr = to.parse()?;
    eventually(SOON, || {
        let inside = echo::ask_tcp(nodes.pod("172.7.21.2")?, server, PATIENCE);
        match (echo::ask_tcp(nodes.outside()?, server, PATIENCE), inside) {
            (Err(_), Err(_)) => Ok(()),
            answers => bail!("{answers:?}"),
        }
    })
    .with_context(|| format!("{to} is up"))
}

fn a_service_changes_its_type() -> Result<()> {
    by_both(|nodes| {
        for (spec, cluster_ip, node_port) in [
            (EXTERNAL_NAME, false, false),
            (CLUSTER_IP, true, false),
            (NODE_PORT, true, true),
            (EXTERNAL_NAME, false, false),
            (NODE_PORT, true, true),
            (CLUSTER_IP, true, false),
        ] {
            nodes.publish("web.yaml", &web("", spec))?;
            for (to, served) in [(ADDR, cluster_ip), (NODE, node_port)] {
                if served { up(nodes, to) } else { down(nodes, to) }.with_context(|| spec)?;
            }
        }
        Ok(())
    })
}

fn ports_come_and_go_by_themselves() -> Result<()> {
    by_both(|nodes| {
        let both = "clusterIP: 192.168.0.40, ports: [{name: http, port: 80}, {name: other, port: 81}]";
        nodes.publish("web.yaml", &web("", CLUSTER_IP))?;
        up(nodes, ADDR)?;
        down(nodes, "192.168.0.40:81")?;
        nodes.publish("web.yaml", &web("", both))?;
        up(nodes, "192.168.0.40:81")?;
        up(nodes, ADDR)?;
        nodes.publish("web.yaml", &web("", CLUSTER_IP))?;
        down(nodes, "192.168.0.40:81")?;
        up(nodes, ADDR)
    })
}

fn protocols_of_one_port_come_and_go_by_themselves() -> Result<()> {
    by_both(|nodes| {
        let udp = || echo::ask_udp(nodes.outside()?, ADDR.parse()?, PATIENCE);
        let both = "clusterIP: 192.168.0.40, ports: [{name: http, port: 80}, {name: dns, port: 80, protocol: UDP}]";
        nodes.publish("web.yaml", &web("", both))?;
        up(nodes, ADDR)?;
        eventually(SOON, udp)?;
        nodes
            .publish("web.yaml", &web("", "clusterIP: 192.168.0.40, ports: [{name: dns, port: 80, protocol: UDP}]"))?;
        down(nodes, ADDR)?;
        eventually(SOON, udp)?;
        nodes.publish("web.yaml", &web("", CLUSTER_IP))?;
        up(nodes, ADDR)?;
        eventually(SOON, || udp().is_err().then_some(()).context("datagrams are still answered"))
    })
}

fn a_service_that_is_made_again_has_its_new_address_only() -> Result<()> {
    by_both(|nodes| {
        nodes.publish("web.yaml", &web("", NODE_PORT))?;
        up(nodes, ADDR)?;
        nodes.node()?.run(&["rm", &format!("{SERVICES}/web.yaml")])?;
        down(nodes, ADDR)?;
        down(nodes, NODE)?;
        nodes.publish("web.yaml", &web("", "clusterIP: 192.168.0.41, ports: [{name: http, port: 80}]"))?;
        up(nodes, "192.168.0.41:80")?;
        down(nodes, ADDR)
    })
}

fn labels_that_leave_a_service_to_others_are_followed() -> Result<()> {
    by_both(|nodes| {
        for label in ["service.kubernetes.io/service-proxy-name: other", "service.kubernetes.io/headless: ''"] {
            nodes.publish("web.yaml", &web("", CLUSTER_IP))?;
            up(nodes, ADDR)?;
            nodes.publish("web.yaml", &web(label, CLUSTER_IP))?;
            down(nodes, ADDR).context(label)?;
        }
        nodes.publish("web.yaml", &web("", CLUSTER_IP))?;
        up(nodes, ADDR)
    })
}

fn others_stay_up_while_a_service_goes() -> Result<()> {
    by_both(|nodes| {
        let named = |number: u8| {
            let text = web("", &format!("clusterIP: 192.168.0.{number}, ports: [{{name: http, port: 80}}]"));
            text.replace("name: web", &format!("name: web{number}"))
        };
        for number in [50, 51, 52] {
            nodes.publish(&format!("web{number}.yaml"), &named(number))?;
            up(nodes, &format!("192.168.0.{number}:80"))?;
        }
        nodes.node()?.run(&["rm", &format!("{SERVICES}/web51.yaml")])?;
        down(nodes, "192.168.0.51:80")?;
        for number in [50, 52] {
            let answer = echo::ask_tcp(nodes.outside()?, format!("192.168.0.{number}:80").parse()?, SOON)?;
            ensure!(["172.7.21.3", "172.7.22.3"].contains(&answer.name.as_str()), "{answer:?}");
        }
        Ok(())
    })
}

/// Everybody who answers a Pod over many connections.
fn answers(nodes: &Nodes, to: &str) -> Result<BTreeSet<String>> {
    let (pod, server) = (nodes.pod("172.7.21.2")?, to.parse()?);
    // Of two endpoints one is left out of 30 connections once in 500 million times.
    (0..30).map(|_| Ok(echo::ask_tcp(pod, server, SOON)?.name)).collect()
}

fn clients_keep_their_endpoint_from_when_a_service_asks_for_it_until_it_does_not() -> Result<()> {
    by_both(|nodes| {
        for (affinity, endpoints) in [("None", 2), ("ClientIP", 1), ("None", 2)] {
            nodes.publish("web.yaml", &web("", &format!("{NODE_PORT}, sessionAffinity: {affinity}")))?;
            for to in [ADDR, NODE] {
                eventually(SOON, || {
                    let found = answers(nodes, to)?;
                    ensure!(found.len() == endpoints, "{affinity} at {to}: {found:?}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    })
}

/// kube-proxy's own test has another endpoint on another node all the time, which must get nothing.
fn a_flow_with_the_policy_local_goes_on_with_the_endpoint_that_is_made_again_here() -> Result<()> {
    by_both(|nodes| {
        let dns = |here: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: dns}}\nspec: {{clusterIP: 192.168.0.53, \
                 internalTrafficPolicy: Local, ports: [{{name: dns, port: 53, protocol: UDP}}]}}\n---\n\
                 apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: dns-1, labels: {{kubernetes.io/service-name: dns}}}}\n\
                 ports: [{{name: dns, port: 80, protocol: UDP}}]\n\
                 endpoints:\n- {{addresses: [172.7.22.2], nodeName: hdss7-22.host.com}}\n{here}"
            )
        };
        let on_this_node = |addr: &str| dns(&format!("- {{addresses: [{addr}], nodeName: hdss7-21.host.com}}\n"));
        nodes.publish("dns.yaml", &on_this_node("172.7.21.3"))?;
        let socket = client(nodes.pod("172.7.21.2")?)?;
        let ask_until = |expected: Option<&str>| {
            eventually(SOON, || {
                let name = ask(&socket).ok();
                ensure!(name.as_deref() != Some("172.7.22.2"), "the endpoint of another node has answered");
                ensure!(name.as_deref() == expected, "{name:?}");
                Ok(())
            })
        };
        ask_until(Some("172.7.21.3"))?;
        nodes.publish("dns.yaml", &dns(""))?;
        ask_until(None)?;
        nodes.publish("dns.yaml", &on_this_node("172.7.21.3"))?;
        ask_until(Some("172.7.21.3"))
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_service_changes_its_type,
            ports_come_and_go_by_themselves,
            protocols_of_one_port_come_and_go_by_themselves,
            a_service_that_is_made_again_has_its_new_address_only,
            labels_that_leave_a_service_to_others_are_followed,
            others_stay_up_while_a_service_goes,
            clients_keep_their_endpoint_from_when_a_service_asks_for_it_until_it_does_not,
            a_flow_with_the_policy_local_goes_on_with_the_endpoint_that_is_made_again_here,
        ],
    )
}
