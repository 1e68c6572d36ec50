//! A configuration file that says the mode, and what changes with it on a live node.

use anyhow::{Result, ensure};
use lab::{Process, eventually};

use super::{Nodes, SOON};

const FILE: &str = "/run/kube-proxy.yaml";

/// Writes the file with this mode whole and at once, as an editor does.
pub(crate) fn write_mode(nodes: &Nodes, mode: &str) -> Result<()> {
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\nclusterCIDR: 172.7.0.0/16\n\
         conntrack: {{maxPerCore: 0, min: 0}}\n"
    );
    nodes.node()?.write("/run/kube-proxy.new", text)?;
    nodes.node()?.run(&["mv", "/run/kube-proxy.new", FILE]).map(drop)
}

/// Starts the proxy with the file and this mode in it.
pub(crate) fn start(nodes: &Nodes, mode: &str) -> Result<Process> {
    write_mode(nodes, mode)?;
    nodes.proxy_with(&[&format!("--config={FILE}")])
}

/// Waits until the daemon says that everything is in the kernel in this mode.
pub(crate) fn await_mode(nodes: &Nodes, mode: &str) -> Result<()> {
    eventually(SOON, || {
        let status = nodes.status()?;
        ensure!(status["mode"] == mode && status["ok"] == true, "{status}");
        Ok(())
    })
}
