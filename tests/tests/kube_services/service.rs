//! A Service of a case.
//!
//! Invariant: its Pods are those with the label of its name; it is deleted with its value.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use lab::eventually;
use lab::kubernetes::Answer;
use serde_json::{Value, json};

use super::server::{self, PORT};
use super::{Lab, SOON};

/// The node ports of a cluster: the first, and how many.
const NODE_PORTS: (u16, u16) = (30_000, 2_768);
/// How many of them are tried at most: cases that run beside one another have a dozen.
const CANDIDATES: u16 = 100;

/// Whether the server has given the node port that is asked for to another Service.
fn is_allocated(answer: &Answer) -> bool {
    let message = answer.body["message"].as_str().unwrap_or_default();
    answer.code == 422 && message.contains("provided port is already allocated")
}

pub(crate) struct Service<'a> {
    lab: &'a Lab,
    kept: Kept,
}

/// A Service without its cluster, which is being changed.
#[derive(Default)]
pub(crate) struct Kept {
    name: String,
    object: Value,
    selected: RefCell<BTreeSet<String>>,
}

impl Kept {
    pub(crate) fn again(self, lab: &Lab) -> Service<'_> {
        Service { lab, kept: self }
    }
}

impl<'a> Service<'a> {
    /// Port 80 over TCP leads to the first port of its Pods, unless the fields say something else. A node port that they ask for may have been
    /// given to a case beside this one, which gives it back.
    pub(super) fn create(lab: &'a Lab, name: &str, spec: Value) -> Result<Self> {
        let mut all = json!({"selector": {name: "yes"}, "ports": [{"port": 80, "targetPort": PORT}]});
        merge(&mut all, spec);
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": all});
        let answer = eventually(SOON, || {
            let body = Some(("application/json", &object));
            let answer = lab.cluster.server.ask("POST", "/api/v1/namespaces/default/services", body)?;
            ensure!(!is_allocated(&answer), "{}", answer.body);
            Ok(answer)
        })?;
        let object = answer.object().with_context(|| format!("create the Service {name}"))?;
        Ok(Self { lab, kept: Kept { name: name.to_owned(), object, selected: RefCell::default() } })
    }

    /// Leaves it as it is, until it is [taken up again](Kept::again).
    pub(crate) fn leave(mut self) -> Kept {
        std::mem::take(&mut self.kept)
    }

    fn path(&self) -> String {
        path(&self.kept.name)
    }

    /// The fields as the API has them.
    pub(crate) fn spec(&self) -> &Value {
        &self.kept.object["spec"]
    }

    /// Its ClusterIP.
    pub(crate) fn address(&self) -> Result<IpAddr> {
        let text = self.kept.object["spec"]["clusterIP"].as_str().unwrap_or_default();
        text.parse().with_context(|| format!("ClusterIP {text:?}"))
    }

    /// A port of its ClusterIP.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address()?, port))
    }

    /// The node port of its port of this number in the list.
    pub(crate) fn node_port(&self, index: usize) -> Result<u16> {
        let port = self.kept.object["spec"]["ports"][index]["nodePort"].as_u64().context("no node port")?;
        Ok(u16::try_from(port)?)
    }

    /// Its node port at both nodes.
    pub(crate) fn at_nodes(&self) -> Result<[SocketAddr; 2]> {
        self.lab.at_nodes(self.node_port(0)?)
    }

    /// Changes fields by a merge patch: what is null goes.
    pub(crate) fn change(&mut self, spec: Value) -> Result<()> {
        self.kept.object = self.lab.cluster.server.patch(&self.path(), &json!({"spec": spec}))?;
        Ok(())
    }

    /// Moves its first port to a node port that no Service has: the server gives any of them to the cases beside this one. `spec` has the
    /// fields for a node port.
    pub(crate) fn move_node_port(&mut self, mut spec: impl FnMut(u16) -> Value) -> Result<u16> {
        let ((first, count), before) = (NODE_PORTS, self.node_port(0)?);
        for further in 1..=CANDIDATES {
            let port = first + (before - first + further) % count;
            let body = json!({"spec": spec(port)});
            let body = Some(("application/merge-patch+json", &body));
            let answer = self.lab.cluster.server.ask("PATCH", &self.path(), body)?;
            if !is_allocated(&answer) {
                self.kept.object = answer.object().with_context(|| format!("move {} to {port}", self.path()))?;
                return Ok(port);
            }
        }
        bail!("{CANDIDATES} node ports behind {before} are all allocated")
    }

    /// Changes labels by a merge patch.
    pub(crate) fn label(&self, labels: Value) -> Result<()> {
        self.lab.cluster.server.patch(&self.path(), &json!({"metadata": {"labels": labels}})).map(drop)
    }

    /// Says as a cloud does at which addresses its load balancer is.
    pub(crate) fn balance_at(&self, addresses: &[&str]) -> Result<()> {
        let ingress: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let body = Some(("application/merge-patch+json", &patch));
        self.lab.cluster.server.ask("PATCH", &format!("{}/status", self.path()), body)?.object().map(drop)
    }

    /// Makes exactly these shared Pods its own.
    pub(crate) fn select(&self, pods: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        let mut selected = self.kept.selected.borrow_mut();
        for (pod, label) in wanted
            .difference(&selected)
            .map(|pod| (pod, json!("yes")))
            .chain(selected.difference(&wanted).map(|pod| (pod, Value::Null)))
        {
            let patch = json!({"metadata": {"labels": {self.kept.name.as_str(): label}}});
            self.lab.cluster.server.patch(&server::path(pod), &patch)?;
        }
        *selected = wanted;
        Ok(())
    }

    /// Deletes it.
    pub(crate) fn delete(&self) -> Result<()> {
        self.lab.cluster.server.delete(&self.path())
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        if self.kept.name.is_empty() {
            return;
        }
        // It may be deleted already.
        let deleted = self.select(&[]).and_then(|()| self.lab.cluster.server.ask("DELETE", &self.path(), None));
        if let Err(error) = deleted {
            eprintln!("delete the Service {}: {error:#}", self.kept.name);
        }
    }
}

pub(crate) fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/services/{name}")
}

fn merge(all: &mut Value, with: Value) {
    let (Some(all), Value::Object(with)) = (all.as_object_mut(), with) else { return };
    for (key, value) in with {
        if value.is_null() {
            all.remove(&key);
        } else {
            all.insert(key, value);
        }
    }
}
