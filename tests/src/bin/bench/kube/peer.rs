//! kube-proxy 1.20.2 beside the same server, on a machine of its own with the same kernel.
//!
//! Invariant: it is Debian's program with the defaults of its mode; its time ends when it says that it has done what the API has.

use std::time::Instant;

use anyhow::Result;
use lab::KubeProxy;

use super::Stage;
use super::flow::received;
use super::services::{Figures, exchange};
use crate::machine;
use crate::proxy::services::Service;

pub(super) fn measure(stage: &Stage, middle: Service, figures: &mut Figures) -> Result<()> {
    let host = stage.cluster.host("peer")?;
    machine::await_calm();
    let (before, started) = (received(host)?, Instant::now());
    let proxy = KubeProxy::start(host, &stage.api, "iptables")?;
    let pid = proxy.process().pid();
    figures.peer.push(started.elapsed(), received(host)? - before, pid)?;
    exchange(stage, (host, pid), middle, (&mut figures.peer_change, false))?;
    drop(proxy);
    host.run(&["nft", "flush", "ruleset"]).map(drop)
}
