//! An operator's shell: kubectl with an administrator's kubeconfig, in a copy of this project whose networks are the cluster's.
//!
//! Invariant: commands are run as they are written, by bash, and must succeed.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use lab::{Host, kubernetes};

use crate::kube_cluster::Cluster;

/// Longest time of a block of commands: a document's own waits are shorter.
const LIMIT: Duration = Duration::from_secs(330);
/// kubectl is what `tests/kubernetes/tools` brings, without which the tests do not run.
const APPLY: &str = "kubectl apply -f /run/operator/objects.yaml";
/// The copy.
const FOLDER: &str = "/run/project";

/// The shell, on the machine of the API server.
pub(crate) struct Shell {
    host: Host,
    path: String,
}

impl Shell {
    pub(crate) fn open(cluster: &Cluster) -> Result<Self> {
        let host = cluster.server.host().clone();
        let tools = kubernetes::tools().map_err(|absent| anyhow!("{absent}"))?;
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
        host.write("/run/operator/.kube/config", cluster.server.kubeconfig().to_string())?;
        let shell = Self { host, path };
        let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
        // "the same into net-conf.json", "copy clusterCIDR".
        let copy = format!(
            "mkdir -p {FOLDER} && cp -r {configs} {FOLDER}/ && \
             grep -rl 10.244.0.0/16 {FOLDER}/configs/kubernetes | xargs sed -i s,10.244.0.0/16,172.7.0.0/16,"
        );
        shell.host.run(&["bash", "-euc", &copy])?;
        Ok(shell)
    }

    /// Runs commands and gives what they printed.
    pub(crate) fn run(&self, commands: &str) -> Result<String> {
        let command = self.host.command("bash").args(["-euo", "pipefail", "-c", commands]);
        let command = command.env("HOME", "/run/operator").env("PATH", &self.path).current_dir(FOLDER).limit(LIMIT);
        Ok(command.run()?.stdout)
    }

    /// Runs a block of a document for this node.
    pub(crate) fn on_node(&self, block: &str, node: &str) -> Result<String> {
        self.run(&block.replace("NODE", node)).with_context(|| format!("for {node}"))
    }

    /// Applies objects.
    pub(crate) fn apply(&self, objects: &str) -> Result<()> {
        self.host.write("/run/operator/objects.yaml", objects)?;
        self.run(APPLY).map(drop)
    }
}
