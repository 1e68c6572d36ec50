//! A Pod with a server that answers with the Pod's name, over TCP and UDP on two ports.
//!
//! Invariant: it is a Pod of the API that a real kubelet runs; only its network is entered by clients. Its first process ignores SIGTERM, so
//! that it serves until the end of its grace period.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::{Host, Pod, eventually};
use serde_json::{Value, json};

use super::ask::At;
use super::{Lab, SOON};
use crate::cni_node::image;

/// Where Pods serve; the second port as well.
pub(crate) const PORT: u16 = 8080;
pub(crate) const SECOND: u16 = 8081;
/// Where Pods of the host's network serve.
pub(crate) const OF_HOST: u16 = 9080;

const DNSMASQ: &str = "/usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --local=/cluster.local/ --user=root --pid-file= --log-facility=-";

/// The condition that Pods with a gate wait for.
const GATE: &str = "lab/serving";

/// A Pod to be.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    node: &'a str,
    of_host: bool,
    gated: bool,
    grace: u32,
    labels: Vec<String>,
    names: Vec<String>,
    resolver: Option<&'a str>,
    of_node: Option<(u16, String, &'static str)>,
}

/// A Pod that runs.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    place: Option<Pod>,
    host: Host,
}

impl<'a> Wanted<'a> {
    /// A Pod on this node, ready as soon as it runs.
    pub(crate) fn pod(name: &'a str, node: &'a str) -> Self {
        Self {
            name,
            node,
            of_host: false,
            gated: false,
            grace: 1,
            labels: Vec::new(),
            names: Vec::new(),
            resolver: None,
            of_node: None,
        }
    }

    /// One in the network of its node.
    pub(crate) fn of_host(name: &'a str, node: &'a str) -> Self {
        Self { of_host: true, ..Self::pod(name, node) }
    }

    /// With the label of a Service.
    pub(crate) fn of(mut self, service: &str) -> Self {
        self.labels.push(service.to_owned());
        self
    }

    /// Not ready before it is [made ready](Server::set_ready).
    pub(crate) fn gated(self) -> Self {
        Self { gated: true, ..self }
    }

    /// With a name server beside it that has these records, `ADDRESS/NAME` each.
    pub(crate) fn serving_names(self, records: &[String]) -> Self {
        Self { names: records.to_vec(), ..self }
    }

    /// Which asks this name server as a Pod of the namespace `default` does.
    pub(crate) fn resolving(self, server: &'a str) -> Self {
        Self { resolver: Some(server), ..self }
    }

    /// Its first port is this one of its node, at this address, for this protocol.
    pub(crate) fn at_node(self, port: u16, address: &str, protocol: &'static str) -> Self {
        Self { of_node: Some((port, address.to_owned(), protocol)), ..self }
    }

    /// It goes on to serve when it is deleted, longer than any case lasts.
    pub(crate) fn lasting(self) -> Self {
        Self { grace: 900, ..self }
    }

    pub(super) fn manifest(&self) -> Result<Value> {
        let ports: &[u16] = if self.of_host { &[OF_HOST] } else { &[PORT, SECOND] };
        let names: String = self
            .names
            .iter()
            .filter_map(|record| record.split_once('/'))
            .map(|(address, name)| format!(" --host-record={name},{address}"))
            .collect();
        let names = if names.is_empty() { names } else { format!("{DNSMASQ}{names} & ") };
        let script = format!("{names}name=$0; for port; do /programs/echo-http $name $port $ADDRESS & done; wait");
        let command: Vec<String> = ["sh", "-c", &script, self.name]
            .map(str::to_owned)
            .into_iter()
            .chain(ports.iter().map(u16::to_string))
            .collect();
        // Names by which Services find another port on each node.
        let name = |port: &u16| match (*port, self.node) {
            (PORT, node) if node == crate::kube_cluster::NODES[0] => "here",
            (SECOND, node) if node != crate::kube_cluster::NODES[0] => "here",
            _ => "other",
        };
        let mut of_container: Vec<_> =
            ports.iter().map(|port| json!({"containerPort": port, "name": name(port)})).collect();
        if let (Some((port, address, protocol)), Some(first)) = (&self.of_node, of_container.first_mut()) {
            first["hostPort"] = (*port).into();
            first["hostIP"] = address.as_str().into();
            first["protocol"] = (*protocol).into();
        }
        let programs = lab::bin_dir()?;
        let folders = [
            ("programs", programs.to_str().context("a path in UTF-8")?, "/programs"),
            ("usr", "/usr", "/usr"),
            ("lib", "/usr/lib", "/lib"),
            ("lib64", "/usr/lib64", "/lib64"),
            // Programs want to know who root is.
            ("passwd", "/etc/passwd", "/etc/passwd"),
            ("group", "/etc/group", "/etc/group"),
        ];
        let mounts: Vec<_> =
            folders.iter().map(|(name, _, at)| json!({"name": name, "mountPath": at, "readOnly": true})).collect();
        let volumes: Vec<_> =
            folders.iter().map(|(name, from, _)| json!({"name": name, "hostPath": {"path": from}})).collect();
        let gates = if self.gated { json!([{"conditionType": GATE}]) } else { json!([]) };
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|label| (label.clone(), "yes".into())).collect();
        // A node has several addresses, and would answer datagrams from the one nearest to the client.
        let address = if self.of_host {
            json!([{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}])
        } else {
            json!([])
        };
        let (policy, resolver) = match self.resolver {
            Some(server) => (
                "None",
                json!({"nameservers": [server], "searches": ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                "options": [{"name": "ndots", "value": "5"}]}),
            ),
            None => ("Default", Value::Null),
        };
        Ok(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "labels": labels}, "spec": {
            "nodeName": self.whole_node(), "hostNetwork": self.of_host, "terminationGracePeriodSeconds": self.grace,
            "automountServiceAccountToken": false, "enableServiceLinks": false, "readinessGates": gates, "dnsPolicy": policy, "dnsConfig": resolver, "volumes": volumes,
            "containers": [{"name": "server", "image": image::NAME, "imagePullPolicy": "Never", "command": command, "env": address,
                "ports": of_container, "volumeMounts": mounts}]}}))
    }

    fn whole_node(&self) -> String {
        format!("{}.host.com", self.node)
    }

    /// Waits until its container runs and serves.
    pub(super) fn eventually_runs(&self, lab: &Lab) -> Result<Server> {
        let path = path(self.name);
        let host = lab.cluster.host(self.node)?.clone();
        let server = eventually(SOON, || {
            let pod = lab.cluster.server.get(&path)?;
            let address = pod["status"]["podIP"].as_str().unwrap_or_default();
            let state = &pod["status"]["containerStatuses"][0];
            ensure!(state["ready"] == true && !address.is_empty(), "{}", pod["status"]);
            let address: IpAddr = address.parse()?;
            let place = if self.of_host { None } else { Some(host.pod_with_address(self.name, address)?) };
            Ok::<_, anyhow::Error>(Server { name: self.name.to_owned(), address, place, host: host.clone() })
        })
        .with_context(|| format!("the Pod {}", self.name))?;
        let port = if self.of_host { OF_HOST } else { PORT };
        super::ask::served(At::Machine(&host), super::ask::Tcp, (server.address, port).into(), &[self.name])?;
        Ok(server)
    }
}

impl Server {
    pub(crate) fn at(&self) -> At<'_> {
        self.place.as_ref().map_or(At::Machine(&self.host), At::Pod)
    }

    /// Name of its Node.
    pub(crate) fn node(&self) -> &str {
        self.host.name()
    }

    /// ID of its container.
    pub(crate) fn container(&self, lab: &Lab) -> Result<String> {
        let pod = lab.cluster.server.get(&path(&self.name))?;
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().context("no container")?;
        Ok(id.trim_start_matches("containerd://").to_owned())
    }

    /// Opens the gate of one that has one, or closes it.
    pub(crate) fn set_ready(&self, lab: &Lab, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [{"type": GATE, "status": status}]}});
        let body = Some(("application/strategic-merge-patch+json", &patch));
        lab.cluster.server.ask("PATCH", &format!("{}/status", path(&self.name)), body)?.object().map(drop)
    }

    /// Deletes it; it is terminating until its grace period is over.
    pub(crate) fn terminate(&self, lab: &Lab) -> Result<()> {
        lab.cluster.server.ask("DELETE", &path(&self.name), None)?.object().map(drop)
    }

    /// Deletes it at once, and waits until it does not serve any more.
    pub(crate) fn end(&self, lab: &Lab) -> Result<()> {
        lab.cluster.server.delete(&path(&self.name))?;
        super::ask::unanswered(At::Machine(&self.host), super::ask::Tcp, (self.address, PORT).into())
    }
}

pub(super) fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}
