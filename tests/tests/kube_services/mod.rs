//! One cluster for all cases: real kubelets, our three programs, and servers in Pods of both nodes that say who they are.
//!
//! Invariant: a case has Services of its own, each with a label of its own by which it takes Pods; the Pods that cases share are never
//! changed but for these labels. Cases run side by side, but for those that stop a program.
#![allow(dead_code, reason = "rooms use their part")]

pub(crate) mod affinity;
pub(crate) mod ask;
pub(crate) mod balancers;
pub(crate) mod cluster_ip;
pub(crate) mod current;
pub(crate) mod datagrams;
pub(crate) mod flannel;
pub(crate) mod kinds;
pub(crate) mod labels;
pub(crate) mod networking;
pub(crate) mod readiness;
pub(crate) mod restarts;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod terminating;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use lab::ApiServer;
use serde_json::Value;

use crate::kube_cluster::{Cluster, NFTABLES, NODES, OUTSIDE, Programs};
use ask::At;
use server::{Server, Wanted};
use service::Service;

/// Until a change of the API is one of the network, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// Servers of Pods, two on each node.
pub(crate) const SHARED: [&str; 4] = ["a1", "a2", "b1", "b2"];
/// Servers of Pods in the network of their node, one on each.
pub(crate) const OF_HOST: [&str; 2] = ["host-a", "host-b"];

/// What 1.20 has, and has switched on only in later releases.
const FEATURES: &str =
    "--feature-gates=EndpointSliceTerminatingCondition=true,MixedProtocolLBService=true,ServiceLBNodePortControl=true";

/// The cluster with its shared servers.
pub(crate) struct Lab {
    /// A current API server, once a case has asked for it.
    current: Option<ApiServer>,
    servers: BTreeMap<&'static str, Server>,
    pub(crate) cluster: Cluster,
}

static LAB: OnceLock<Result<RwLock<Lab>, String>> = OnceLock::new();

fn started() -> Result<&'static RwLock<Lab>> {
    let lab = LAB.get_or_init(|| Lab::start().map(RwLock::new).map_err(|error| format!("{error:#}")));
    lab.as_ref().map_err(|error| anyhow!("start the cluster of all cases: {error}"))
}

/// The cluster, for a case beside others.
pub(crate) fn lab() -> Result<RwLockReadGuard<'static, Lab>> {
    Ok(started()?.read().unwrap_or_else(PoisonError::into_inner))
}

/// The cluster, for a case that stops programs.
pub(crate) fn alone() -> Result<RwLockWriteGuard<'static, Lab>> {
    Ok(started()?.write().unwrap_or_else(PoisonError::into_inner))
}

impl Lab {
    fn start() -> Result<Self> {
        let mut lab = Self {
            current: None,
            servers: BTreeMap::new(),
            cluster: Cluster::start_with(Programs::Processes(NFTABLES), &[FEATURES])?,
        };
        let on = |name: &str| if name.starts_with('a') { NODES[0] } else { NODES[1] };
        let pods = SHARED.map(|name| Wanted::pod(name, on(name)));
        let of_host = OF_HOST.iter().zip(NODES).map(|(name, node)| Wanted::of_host(name, node));
        let wanted: Vec<_> = pods.into_iter().chain(of_host).collect();
        for each in &wanted {
            lab.cluster.apply(&each.manifest()?)?;
        }
        for each in wanted {
            let server = each.eventually_runs(&lab)?;
            lab.servers.insert(each.name, server);
        }
        Ok(lab)
    }

    /// A client: a shared Pod, or a machine.
    pub(crate) fn at(&self, name: &str) -> Result<At<'_>> {
        match self.servers.get(name) {
            Some(server) => Ok(server.at()),
            None => Ok(At::Machine(self.cluster.host(name)?)),
        }
    }

    pub(crate) fn server(&self, name: &str) -> Result<&Server> {
        self.servers.get(name).with_context(|| format!("no shared Pod {name}"))
    }

    /// A machine that is no node.
    pub(crate) fn outside(&self) -> Result<At<'_>> {
        self.at(OUTSIDE)
    }

    /// Both nodes' addresses.
    pub(crate) fn node_addresses(&self) -> Result<[Ipv4Addr; 2]> {
        Ok([self.cluster.host(NODES[0])?.address()?, self.cluster.host(NODES[1])?.address()?])
    }

    /// A port of both nodes.
    pub(crate) fn at_nodes(&self, port: u16) -> Result<[SocketAddr; 2]> {
        Ok(self.node_addresses()?.map(|address| SocketAddr::from((address, port))))
    }

    /// A Service of these fields, which takes the Pods that have its label.
    pub(crate) fn service(&self, name: &str, spec: Value) -> Result<Service<'_>> {
        Service::create(self, name, spec)
    }

    /// Starts a Pod of a case and waits until it runs.
    pub(crate) fn run(&self, wanted: &Wanted<'_>) -> Result<Server> {
        self.cluster.apply(&wanted.manifest()?)?;
        wanted.eventually_runs(self)
    }
}
