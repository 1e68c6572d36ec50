//! The etcd behind an API server: one member on its machine's loopback, with its data in memory.
//!
//! Invariant: nothing but the API server talks to it, and the tests' faults: compaction, loss, an older state.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadline::eventually;
use crate::host::Host;
use crate::process::Process;

/// Beside an etcd of the test's own on the same machine.
pub(crate) const URL: &str = "http://127.0.0.1:2381";
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2381);
const PEER: &str = "http://127.0.0.1:2382";
const DATA: &str = "/run/kubernetes/etcd";
const LIMIT: Duration = Duration::from_secs(90);

/// The member.
#[derive(Debug)]
pub(crate) struct Etcd {
    host: Host,
    program: PathBuf,
    process: Option<Process>,
}

impl Etcd {
    pub(crate) fn start(host: &Host, program: PathBuf) -> Result<Self> {
        let mut etcd = Self { host: host.clone(), program, process: None };
        etcd.launch()?;
        Ok(etcd)
    }

    pub(crate) fn launch(&mut self) -> Result<()> {
        let flags = [
            ("--name", "kubernetes"),
            ("--data-dir", DATA),
            ("--listen-client-urls", URL),
            ("--advertise-client-urls", URL),
            ("--listen-peer-urls", PEER),
            ("--initial-advertise-peer-urls", PEER),
            ("--initial-cluster", &format!("kubernetes={PEER}")),
            ("--logger", "zap"),
            ("--log-level", "warn"),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag, value]);
        let process = self.host.command(&self.program).args(flags).start("etcd of Kubernetes")?;
        eventually(LIMIT, || {
            ensure!(process.is_running(), "it has ended: {}", process.log());
            self.etcdctl(&["endpoint", "health"]).map(drop)
        })?;
        self.process = Some(process);
        Ok(())
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.take().context("this etcd does not run")?.kill()
    }

    /// Forgets every version before the current one.
    pub(crate) fn compact(&self) -> Result<()> {
        let status: Value = serde_json::from_str(&self.etcdctl(&["endpoint", "status", "-w", "json"])?)?;
        let revision = status.pointer("/0/Status/header/revision").and_then(Value::as_i64);
        let revision = revision.with_context(|| format!("no revision in {status}"))?.to_string();
        self.etcdctl(&["compact", &revision]).map(drop)
    }

    /// Keeps the state under this name.
    pub(crate) fn save(&self, name: &str) -> Result<()> {
        self.etcdctl(&["snapshot", "save", &saved(name)]).map(drop)
    }

    /// Puts a kept state in the place of the current one, while it does not run.
    pub(crate) fn restore(&mut self, name: &str) -> Result<()> {
        ensure!(self.process.is_none(), "this etcd runs");
        self.host.run(&["rm", "-rf", DATA])?;
        let cluster = format!("--initial-cluster=kubernetes={PEER}");
        let peer = format!("--initial-advertise-peer-urls={PEER}");
        let data = format!("--data-dir={DATA}");
        self.etcdctl(&["snapshot", "restore", &saved(name), "--name=kubernetes", &cluster, &peer, &data])?;
        self.launch()
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let command = self.host.command("etcdctl").env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", URL);
        Ok(command.args(args).run()?.stdout)
    }
}

fn saved(name: &str) -> String {
    format!("/run/kubernetes/saved-{name}")
}
