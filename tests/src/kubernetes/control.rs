//! The rest of a control plane beside an API server: controllers and scheduler.
//!
//! Invariant: both are the programs of the server's release, on its machine, and end with this value.

use anyhow::Result;

use super::api_server::ApiServer;
use crate::lab_kernel;
use crate::process::Process;

/// Controllers and scheduler.
#[derive(Debug)]
pub struct ControlPlane {
    processes: Vec<Process>,
    network: String,
    /// Flags for the controllers behind ours.
    more: Vec<String>,
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
        server.host().write("/run/kubernetes/admin.kubeconfig", server.kubeconfig().to_string())?;
        let more = more.iter().map(|flag| (*flag).to_owned()).collect();
        let mut control = Self { processes: Vec::new(), network: network.to_owned(), more };
        control.start_again(server)?;
        Ok(control)
    }

    /// Ends both as a crash does.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        self.processes.drain(..).try_for_each(|process| process.kill())
    }

    /// Starts both again where they were stopped.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_again(&mut self, server: &ApiServer) -> Result<()> {
        let access = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
            .map(|flag| format!("--{flag}=/run/kubernetes/admin.kubeconfig"));
        let start = |name: &str, flags: &[&str]| {
            let command = server.host().command(server.programs().join(name)).args(&access);
            let own = ["--leader-elect=false", "--port=0", "--kube-api-qps=100", "--kube-api-burst=200"];
            command.args(own).args(flags).start(name)
        };
        let cidr = format!("--cluster-cidr={}", self.network);
        // A system call of the lab kernel's costs ten times as much, and a kubelet's heartbeat many.
        let grace = format!("--node-monitor-grace-period={}s", if lab_kernel::is_inside() { 120 } else { 12 });
        let mut controllers = vec![
            "--cert-dir=/run/kubernetes/controllers",
            "--allocate-node-cidrs=true",
            &cidr,
            "--service-cluster-ip-range=192.168.0.0/16",
            "--service-account-private-key-file=/run/kubernetes/accounts.key",
            "--root-ca-file=/run/kubernetes/ca.crt",
            &grace,
            "--pod-eviction-timeout=5s",
        ];
        controllers.extend(self.more.iter().map(String::as_str));
        let scheduler = ["--cert-dir=/run/kubernetes/scheduler"];
        self.processes = vec![start("kube-controller-manager", &controllers)?, start("kube-scheduler", &scheduler)?];
        Ok(())
    }
}
