//! The rest of a control plane beside an API server: controllers and scheduler.
//!
//! Invariant: both are the programs of the server's release, on its machine, and end with this value.

use anyhow::Result;

use super::api_server::ApiServer;
use crate::process::Process;

/// Controllers and scheduler.
#[derive(Debug)]
pub struct ControlPlane {
    _processes: [Process; 2],
}

impl ControlPlane {
    /// Starts both; Nodes get their podCIDRs out of this network.
    ///
    /// # Errors
    /// When they cannot be started: the modern server has none.
    pub fn start(server: &ApiServer, network: &str) -> Result<Self> {
        Self::start_with(server, network, &[])
    }

    /// Starts both, with flags of its own for the controllers behind ours.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_with(server: &ApiServer, network: &str, more: &[&str]) -> Result<Self> {
        let host = server.host();
        host.write("/run/kubernetes/admin.kubeconfig", server.kubeconfig().to_string())?;
        let access = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
            .map(|flag| format!("--{flag}=/run/kubernetes/admin.kubeconfig"));
        let start = |name: &str, flags: &[&str]| {
            let command = host.command(server.programs().join(name)).args(&access);
            command.args(["--leader-elect=false", "--port=0"]).args(flags).start(name)
        };
        let controllers = [
            "--cert-dir=/run/kubernetes/controllers",
            "--allocate-node-cidrs=true",
            &format!("--cluster-cidr={network}"),
            "--service-cluster-ip-range=192.168.0.0/16",
            "--service-account-private-key-file=/run/kubernetes/accounts.key",
            "--root-ca-file=/run/kubernetes/ca.crt",
            "--node-monitor-grace-period=16s",
            "--pod-eviction-timeout=5s",
        ];
        let scheduler = ["--cert-dir=/run/kubernetes/scheduler"];
        let controllers = [&controllers[..], more].concat();
        let processes = [start("kube-controller-manager", &controllers)?, start("kube-scheduler", &scheduler)?];
        Ok(Self { _processes: processes })
    }
}
