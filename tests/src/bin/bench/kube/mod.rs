//! Nodes and Services in a real API server: `netd` among N Nodes, `ipvs-proxy` among N Services, and kube-proxy beside it.
//!
//! Invariant: what the daemons read comes from the server itself, in its own encoding and over a network of the lab. Objects are written
//! into its etcd, beneath it: on two processors a server that takes each by a request is what would be measured. A time counts only when
//! everything was found in the kernel right after it was taken.

mod changes;
mod flow;
mod latency;
mod nodes;
mod objects;
pub(crate) mod on_ipvs;
mod peer;
mod services;
mod starts;
mod storm;

use std::time::Duration;

use anyhow::{Context, Result};
use lab::kubernetes::Release;
use lab::{ApiServer, Cluster, Host, Topology};

use crate::machine;
use crate::options::Options;
use crate::report::Report;
use crate::store::Store;

const DRAWING: &str = "network 10.4.7.0/24\napi 10.4.7.12\nnode 10.4.7.21\npeer 10.4.7.22";
const KUBECONFIG: &str = "/etc/kubernetes/kubeconfig";
const LIMIT: Duration = Duration::from_secs(300);

/// Bytes of one transaction at most: etcd takes 1.5 MiB, as its gateway has them.
const TOGETHER: usize = 512 << 10;

/// An API server with its machine, a node, and another one for the peer.
struct Stage {
    // In the order of their end: the server first.
    api: ApiServer,
    store: Store,
    cluster: Cluster,
}

impl Stage {
    fn start(release: Release) -> Result<Self> {
        let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
        let host = cluster.host("api")?;
        let api = ApiServer::start_with(host, release, &[])?;
        let store = Store::at(host, api.store());
        cluster.host("node")?.write(KUBECONFIG, api.kubeconfig().to_string())?;
        Ok(Self { api, store, cluster })
    }

    fn node(&self) -> Result<&Host> {
        self.cluster.host("node")
    }

    /// Writes objects beneath the server, in transactions that etcd takes.
    fn fill(&self, entries: impl Iterator<Item = (String, String)>) -> Result<()> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for entry in entries {
            bytes += entry.1.len();
            batch.push(entry);
            if bytes >= TOGETHER {
                self.store.put_all(&std::mem::take(&mut batch), None)?;
                bytes = 0;
            }
        }
        self.store.put_all(&batch, None)
    }
}

/// The servers that are built, each with what is to be measured there; says what cannot be measured.
fn releases(report: &Report) -> Vec<Release> {
    // A rehearsal sees that everything runs; the current server would show it once more.
    let all = if machine::is_rehearsal() { vec![Release::V1_20] } else { vec![Release::V1_20, Release::Modern] };
    let built = |release: &Release| match release.programs() {
        Ok(_) => true,
        Err(why) => {
            report.text(&format!("Not measured: {release}: {why}"));
            false
        }
    };
    all.into_iter().filter(built).collect()
}

/// Measures and reports.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    report.section("Nodes and Services in a Kubernetes API server");
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let releases = releases(report);
    nodes::measure(&releases, options, report).context("Nodes")?;
    services::measure(&releases, options, report).context("Services")
}
