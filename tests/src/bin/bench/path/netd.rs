//! netd on both nodes of a ground, with etcd on the first: the data path as an operator gets it.
//!
//! Invariant: netd makes devices, routes and rules by itself; the ground has the Pods only.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Etcd, Process, bin};

use super::ground::{Carrier, Ground};

const READY: &str = "ready: every lease is in the kernel";
const LIMIT: Duration = Duration::from_secs(60);

/// A ground on which netd runs.
pub(crate) struct Served {
    /// Before the machines they run on.
    daemons: Vec<Process>,
    etcd: Etcd,
    pub(crate) ground: Ground,
}

impl Served {
    /// Starts netd for the backend `carrier`; `more` are further members of net-conf, each with a comma in front, and `flags` further flags.
    pub(crate) fn start(carrier: Carrier, more: &str, flags: &[&str]) -> Result<Self> {
        let ground = Ground::new(Some(carrier))?;
        let etcd = Etcd::start([ground.node(21)?])?;
        let conf = format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{}"}}{more}}}"#, carrier.name());
        etcd.put("/coreos.com/network/config", &conf)?;
        let endpoints = etcd.endpoints();
        let start = |host: &lab::Host| {
            let command = host.command(bin("netd")?);
            command.args(["--etcd-endpoints", &endpoints, "--iface", "eth0", "--ip-masq"]).args(flags).start("netd")
        };
        let daemons = ground.nodes().map(start).collect::<Result<Vec<_>>>()?;
        for daemon in &daemons {
            daemon.wait_for_line(READY, LIMIT)?;
        }
        let [first, _] = ground.pods.as_slice() else { anyhow::bail!("two Pods expected") };
        let way = || first.run(&["ping", "-c1", "-W1", "172.7.22.2"]).map(drop);
        lab::eventually(LIMIT, way).with_context(|| format!("Pods do not talk by {}", carrier.name()))?;
        Ok(Self { daemons, etcd, ground })
    }

    /// Ends netd and etcd; what netd made stays.
    pub(crate) fn stop(self) -> Result<Ground> {
        for daemon in self.daemons {
            daemon.terminate(LIMIT)?;
        }
        drop(self.etcd);
        Ok(self.ground)
    }
}
