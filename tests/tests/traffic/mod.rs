//! Real servers and clients through a Service: nginx and dnsmasq as endpoints, wrk and dig as clients, and changes meanwhile.
//!
//! Invariant: a request that fails is counted and named. Every client ends by itself: it makes a number of requests or has a time.

mod churn;
mod dns;
pub(crate) mod web;

use anyhow::{Result, ensure};
use lab::{Process, eventually};

pub(crate) use churn::ten_seconds_of_changes_deliver_nothing_to_the_wrong_service;
pub(crate) use dns::queries_on_one_socket_go_on_when_the_server_is_replaced;
pub(crate) use web::no_request_fails_while_all_web_servers_are_replaced;

use crate::proxy::{Nodes, SERVICES, SOON};

pub(crate) const PODS: [&str; 4] = ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"];

/// Nodes with a proxy of this data path.
fn start(mode: &str) -> Result<(Process, Nodes)> {
    let nodes = nodes()?;
    let proxy = nodes.proxy_with(&[&format!("--proxy-mode={mode}")])?;
    Ok((proxy, nodes))
}

/// Nodes without a proxy. Without any route to a Service's address a node does not even try, so it has a default route, over a link of
/// its own, so that nobody is redirected.
fn nodes() -> Result<Nodes> {
    let nodes = Nodes::start()?;
    let route = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up\naddress add 10.9.9.21/24 dev up0\n\
        neigh add 10.9.9.1 lladdr 02:00:00:00:00:01 dev up0\nroute add default via 10.9.9.1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(route).run()?;
    nodes.node()?.run(&["mkdir", "-p", SERVICES])?;
    Ok(nodes)
}

/// A Service of one port with these endpoints, as a manifest.
fn service(name: &str, addr: &str, (protocol, port, target): (&str, u16, u16), endpoints: &[&str]) -> String {
    let endpoints: String = endpoints.iter().map(|pod| format!("- addresses: [{pod}]\n")).collect();
    let endpoints =
        if endpoints.is_empty() { "endpoints: []\n".to_owned() } else { format!("endpoints:\n{endpoints}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: {addr}, ports: [{{name: p, port: {port}, protocol: {protocol}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: p, port: {target}, protocol: {protocol}}}]\n{endpoints}"
    )
}

/// Publishes `content`, and waits until the proxy has applied as many Services as there are with the new mark behind it.
fn apply(nodes: &Nodes, file: &str, content: &str, marks: &mut usize) -> Result<()> {
    *marks += 1;
    let mark = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: mark-{marks}, namespace: zz}}\n\
         spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n"
    );
    nodes.publish(file, content)?;
    nodes.publish(&format!("zz-{marks:03}.yaml"), &mark)?;
    let expected = *marks;
    eventually(SOON, || {
        let status = nodes.status()?;
        let known = status["services"].as_u64() == Some(expected as u64 + 1);
        ensure!(known && status["ok"] == true, "{expected} marks are not applied: {status}");
        Ok(())
    })
}
