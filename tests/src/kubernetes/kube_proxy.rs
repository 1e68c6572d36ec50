//! A real kube-proxy in a machine of the lab, with the objects that it serves.
//!
//! Invariant: it is the real program, with a real API server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::api_server::ApiServer;
use crate::deadline::eventually;
use crate::host::Host;
use crate::process::Process;

/// Longest time until it serves a few Services.
const LIMIT: Duration = Duration::from_secs(150);

/// Where it says whether it is well, and its numbers: beside a proxy of ours.
const HEALTH: &str = "127.0.0.1:10356";
const METRICS: &str = "127.0.0.1:10349";

/// When it last brought the kernel where the API wants it, and when it last received a change.
const DONE: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds ";
const QUEUED: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds ";

/// The modules that it needs for the mode ipvs, as `/proc/modules` would list them.
const LOADED: &str = "ip_vs 0 0\nip_vs_rr 0 0\nip_vs_wrr 0 0\nip_vs_sh 0 0\nnf_conntrack 0 0\n";

/// A kube-proxy that runs.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
}

impl KubeProxy {
    /// Starts it on the machine in this mode, and waits until it has served once what the API has.
    ///
    /// # Errors
    /// When it is not built, or does not begin to serve.
    pub fn start(host: &Host, api: &ApiServer, mode: &str) -> Result<Self> {
        Self::start_within(host, api, mode, LIMIT)
    }

    /// The same, within this time: it writes each of its rules anew for each pass, and among a thousand Services a pass takes minutes.
    ///
    /// # Errors
    /// As [`KubeProxy::start`].
    pub fn start_within(host: &Host, api: &ApiServer, mode: &str, limit: Duration) -> Result<Self> {
        let program = api.programs().join("kube-proxy");
        host.write("/run/kube-proxy/kubeconfig", api.kubeconfig().to_string())?;
        host.write("/run/kube-proxy/config", configuration(host, mode).to_string())?;
        // What it would load is built into the kernels that these tests run on; it reads what is loaded from a list.
        host.write("/run/kube-proxy/loaded", LOADED)?;
        host.write("/run/kube-proxy/modules/modprobe", "#!/bin/sh\n")?;
        host.run(&["chmod", "755", "/run/kube-proxy/modules/modprobe"])?;
        api.put(&node(host)?)?;
        let path = format!("/run/kube-proxy/modules:{}", std::env::var("PATH").unwrap_or_default());
        let command = host
            .command(program)
            .arg("--config=/run/kube-proxy/config")
            .env("PATH", path)
            .env("NETD_LAB_MODULES", "/run/kube-proxy/loaded");
        let process = command.start("kube-proxy")?;
        eventually(limit, || {
            ensure!(process.is_running(), "kube-proxy ended: {}", process.log());
            let metrics = host.run(&["curl", "-s", "--max-time", "5", &format!("http://{METRICS}/metrics")])?.stdout;
            let time =
                |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            let (done, queued) = (time(DONE).context("no metrics")?, time(QUEUED).context("no metrics")?);
            ensure!(done > 0.0 && done >= queued, "synced at {done}, changed at {queued}");
            Ok(())
        })?;
        Ok(Self { process })
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

fn node(host: &Host) -> Result<Value> {
    let addresses = json!([{"type": "InternalIP", "address": host.address()?.to_string()}, {"type": "Hostname", "address": host.name()}]);
    Ok(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": host.name()}, "status": {"addresses": addresses}}),
    )
}

fn configuration(host: &Host, mode: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "bindAddress": "0.0.0.0",
        "clusterCIDR": "172.7.0.0/16",
        "hostnameOverride": host.name(),
        "healthzBindAddress": HEALTH,
        "metricsBindAddress": METRICS,
        "clientConnection": {"kubeconfig": "/run/kube-proxy/kubeconfig"},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        "iptables": {"syncPeriod": "30s", "minSyncPeriod": "0s", "masqueradeBit": 14},
        "ipvs": {"syncPeriod": "10s", "minSyncPeriod": "0s"},
    })
}
