//! A Service of a case.
//!
//! Invariant: its Pods are those with the label of its name; it is deleted with its value.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Lab;
use super::server::{self, PORT};

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
    /// Port 80 over TCP leads to the first port of its Pods, unless the fields say something else.
    pub(super) fn create(lab: &'a Lab, name: &str, spec: Value) -> Result<Self> {
        let mut all = json!({"selector": {name: "yes"}, "ports": [{"port": 80, "targetPort": PORT}]});
        merge(&mut all, spec);
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": all});
        let object = lab.cluster.server.put(&object)?;
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
