//! Nodes that run netd on the reference cluster with a real API server, each through a place of faults of its own.
//!
//! Invariant: every test has a cluster of its own and an API server without the objects of the tests before.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{Faults, Release, Shared};
use lab::{ApiServer, Cluster, Host, Process, eventually};
use serde_json::{Value, json};

/// What must happen "at once", generous for a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(40);

pub(crate) const VXLAN: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#;
pub(crate) const DUAL: &str =
    r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"host-gw"}}"#;

pub(crate) const READY: &str = "ready: every lease is in the kernel";
pub(crate) const NODES: [&str; 2] = ["hdss7-21", "hdss7-22"];

const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";
const KUBECONFIG: &str = "/etc/kubernetes/kubeconfig";

/// flannel's prefix of annotations.
pub(crate) const PREFIX: &str = "flannel.alpha.coreos.com";

/// The API server and the machines.
pub(crate) struct Net {
    pub(crate) cluster: Cluster,
    pub(crate) faults: BTreeMap<&'static str, Faults>,
    pub(crate) api: Shared,
}

impl Net {
    /// The reference cluster whose nodes have this configuration.
    pub(crate) fn start(release: Release, net_conf: &str) -> Result<Self> {
        let api = ApiServer::shared(release)?;
        let cluster = Cluster::reference()?;
        let mut faults = BTreeMap::new();
        for node in NODES {
            let host = cluster.host(node)?;
            let place = Faults::start(&api, host)?;
            host.write(NET_CONF, net_conf)?;
            host.write(KUBECONFIG, place.kubeconfig().to_string())?;
            faults.insert(node, place);
        }
        Ok(Self { cluster, faults, api })
    }

    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.cluster.host(name)
    }

    pub(crate) fn faults(&self, node: &str) -> Result<&Faults> {
        self.faults.get(node).context("a node with faults")
    }

    pub(crate) fn configure(&self, node: &str, net_conf: &str) -> Result<()> {
        self.host(node)?.write(NET_CONF, net_conf)
    }

    /// netd on a node as flannel's DaemonSet starts it, without waiting for anything.
    pub(crate) fn launch(&self, node: &str, extra: &[&str]) -> Result<Process> {
        self.launch_as(node, &[("NODE_NAME", node)], extra)
    }

    pub(crate) fn launch_as(&self, node: &str, variables: &[(&str, &str)], extra: &[&str]) -> Result<Process> {
        let mut command = self.host(node)?.command(lab::bin("netd")?);
        for (name, value) in variables {
            command = command.env(name, value);
        }
        let own = ["--kube-subnet-mgr", "--ip-masq", "--iface=eth0"];
        command.args(own).arg(format!("--kubeconfig-file={KUBECONFIG}")).args(extra).start("netd")
    }

    /// A Node without anything of a subnet manager's.
    pub(crate) fn put_node(&self, name: &str, cidrs: &[&str]) -> Result<Value> {
        self.api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec(cidrs)}))
    }

    /// A Node as flannel leaves it.
    pub(crate) fn put_flannel(&self, name: &str, cidrs: &[&str], said: &[(&str, &str)]) -> Result<Value> {
        let named = |(name, value): &(&str, &str)| (format!("{PREFIX}/{name}"), Value::from(*value));
        let annotations: serde_json::Map<String, Value> =
            said.iter().chain(&[("kube-subnet-manager", "true")]).map(named).collect();
        let metadata = json!({"name": name, "annotations": annotations});
        self.api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec(cidrs)}))
    }

    pub(crate) fn node(&self, name: &str) -> Result<Value> {
        self.api.get(&format!("/api/v1/nodes/{name}"))
    }

    /// Changes annotations of a Node, with their names behind the prefix; null removes one.
    pub(crate) fn annotate(&self, node: &str, changes: &[(&str, Value)]) -> Result<()> {
        let named = changes.iter().map(|(name, value)| (format!("{PREFIX}/{name}"), value.clone()));
        let annotations: serde_json::Map<String, Value> = named.collect();
        let patch = json!({"metadata": {"annotations": annotations}});
        self.api.patch(&format!("/api/v1/nodes/{node}"), &patch).map(drop)
    }

    /// The value of an annotation; empty when there is none.
    pub(crate) fn annotation(&self, node: &str, name: &str) -> Result<String> {
        let node = self.node(node)?;
        let value = node["metadata"]["annotations"][format!("{PREFIX}/{name}")].as_str().unwrap_or_default().to_owned();
        Ok(value)
    }

    pub(crate) fn eventually_annotated(&self, node: &str, name: &str, value: &str) -> Result<()> {
        eventually(SOON, || {
            let found = self.annotation(node, name)?;
            ensure!(found == value, "{name} of {node} is {found:?}, not {value:?}");
            Ok(())
        })
    }

    /// Status, reason and message of NetworkUnavailable.
    pub(crate) fn condition(&self, node: &str) -> Result<[String; 3]> {
        let node = self.node(node)?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
        let found = found.with_context(|| format!("no condition: {conditions:?}"))?;
        Ok(["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default().to_owned()))
    }

    pub(crate) fn eventually_available(&self, node: &str) -> Result<()> {
        eventually(SOON, || {
            let found = self.condition(node)?;
            ensure!(found == ["False", "FlannelIsUp", "Flannel is running on this node"], "{found:?}");
            Ok(())
        })
    }

    /// The Events about a Node, as `REASON: MESSAGE`.
    pub(crate) fn events(&self, node: &str) -> Result<Vec<String>> {
        let all = self.api.get("/api/v1/namespaces/default/events")?;
        let of_node =
            |event: &&Value| event["involvedObject"]["kind"] == "Node" && event["involvedObject"]["name"] == node;
        let text = |event: &Value| {
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text("reason"), text("message"))
        };
        Ok(all["items"].as_array().into_iter().flatten().filter(of_node).map(text).collect())
    }

    pub(crate) fn eventually_event(&self, node: &str, part: &str) -> Result<()> {
        eventually(SOON, || {
            let events = self.events(node)?;
            ensure!(events.iter().any(|event| event.contains(part)), "no Event with {part:?}: {events:?}");
            Ok(())
        })
    }

    /// Destinations of netd's routes on a node.
    pub(crate) fn routes(&self, node: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for family in ["-4", "-6"] {
            let text = self.host(node)?.run(&["ip", family, "route", "show", "proto", "121"])?.stdout;
            all.extend(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned));
        }
        all.sort();
        Ok(all)
    }

    pub(crate) fn eventually_routes(&self, node: &str, wanted: &[&str]) -> Result<()> {
        eventually(SOON, || {
            let found = self.routes(node)?;
            ensure!(found == wanted, "{node} routes {found:?}, not {wanted:?}");
            Ok(())
        })
    }

    /// What netd on a node says of itself, for a terminal.
    pub(crate) fn status(&self, node: &str) -> Result<String> {
        Ok(self.host(node)?.command(lab::bin("netd")?).arg("status").run()?.stdout)
    }

    pub(crate) fn eventually_status(&self, node: &str, part: &str) -> Result<()> {
        eventually(SOON, || {
            let text = self.status(node)?;
            ensure!(text.contains(part), "no {part:?} in {text}");
            Ok(())
        })
    }

    pub(crate) fn eventually_subnet(&self, node: &str, subnet: &str) -> Result<()> {
        eventually(SOON, || {
            let text = self.host(node)?.read("/run/flannel/subnet.env")?;
            ensure!(text.lines().any(|line| line == format!("FLANNEL_SUBNET={subnet}")), "{text}");
            Ok(())
        })
    }
}

fn spec(cidrs: &[&str]) -> Value {
    match cidrs.first() {
        Some(first) => json!({"podCIDR": first, "podCIDRs": cidrs}),
        None => json!({}),
    }
}
