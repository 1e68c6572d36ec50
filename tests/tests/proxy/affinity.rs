//! Clients that stay with their endpoint, whichever data path leads them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Place, echo, eventually};

use super::{Nodes, SOON, WEB};

/// All Pods that answer.
pub(crate) const PODS: [&str; 4] = ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"];

/// The Service `web` whose clients stay for so many seconds, at every kind of address, over TCP and UDP, with these endpoints.
pub(crate) fn sticky(seconds: u32, policy: &str, endpoints: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: NodePort\n  clusterIP: 192.168.0.10\n  \
         externalTrafficPolicy: {policy}\n  externalIPs: [10.4.7.98]\n  sessionAffinity: ClientIP\n  \
         sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}\n  ports:\n  \
         - {{name: http, port: 80, nodePort: 30080}}\n  - {{name: dns, port: 53, protocol: UDP, nodePort: 30053}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\n\
         ports: [{{name: http, port: 80}}, {{name: dns, port: 80, protocol: UDP}}]\nendpoints:\n"
    );
    for endpoint in endpoints {
        let node = if endpoint.starts_with("172.7.21.") { "hdss7-21.host.com" } else { "hdss7-22.host.com" };
        text.push_str(&format!("- {{addresses: [{endpoint}], nodeName: {node}}}\n"));
    }
    text
}

/// The one that answers `from` at each of `servers`, many times.
pub(crate) fn only_answer(from: &impl Place, servers: &[&str]) -> Result<String> {
    let mut names: Vec<String> = Vec::new();
    for server in servers {
        let to: SocketAddr = server.parse()?;
        for _ in 0..8 {
            names.push(echo::ask_tcp(from, to, SOON).with_context(|| format!("at {server}"))?.name);
        }
    }
    names.dedup();
    ensure!(names.len() == 1, "at {servers:?}: {names:?}");
    names.pop().context("nobody was asked")
}

/// The one that answers each client at the virtual address.
pub(crate) fn answers(nodes: &Nodes) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for pod in PODS.iter().filter(|pod| pod.starts_with("172.7.21.")) {
        found.insert((*pod).to_owned(), only_answer(nodes.pod(pod)?, &[WEB])?);
    }
    found.insert("node".to_owned(), only_answer(nodes.node()?, &[WEB])?);
    found.insert("outside".to_owned(), only_answer(nodes.outside()?, &[WEB])?);
    Ok(found)
}

/// Takes an endpoint away and lets it come back: its clients move once, and no others.
pub(crate) fn clients_move_with_their_endpoint_only(nodes: &Nodes) -> Result<()> {
    let before = answers(nodes)?;
    let gone = before["outside"].clone();
    let left: Vec<&str> = PODS.into_iter().filter(|pod| *pod != gone).collect();
    nodes.publish("web.yaml", &sticky(10_800, "Cluster", &left))?;
    eventually(SOON, || {
        let name = only_answer(nodes.outside()?, &[WEB])?;
        ensure!(name != gone, "{name} is no endpoint any more");
        Ok(())
    })?;
    let after = answers(nodes)?;
    for (client, name) in &before {
        ensure!(
            after[client] != gone && (*name == gone || after[client] == *name),
            "{client}: {before:?}, then {after:?}"
        );
    }
    nodes.publish("web.yaml", &sticky(10_800, "Cluster", &PODS))?;
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["ok"] == true, "{status}");
        Ok(())
    })?;
    let back = answers(nodes)?;
    ensure!(back == after, "clients stay when an endpoint comes: {after:?}, then {back:?}");
    Ok(())
}
