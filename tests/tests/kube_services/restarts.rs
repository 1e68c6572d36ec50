//! Programs that end and are started again under Services that are used.
//!
//! Invariant: these cases are alone: no other case runs while a program is down.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::ask::{Tcp, served, served_at};
use super::service::Service;
use super::{Lab, alone};
use crate::kube_cluster::{NODES, OUTSIDE};

const PODS: [&str; 2] = ["a1", "b1"];
const CLIENTS: [&str; 4] = ["a2", "b2", NODES[0], NODES[1]];
/// Until a program has ended that was asked to.
const PATIENCE: Duration = Duration::from_secs(30);

fn service<'a>(lab: &'a Lab, name: &str) -> Result<Service<'a>> {
    let service = lab.service(name, json!({"type": "NodePort"}))?;
    service.select(&PODS)?;
    Ok(service)
}

/// Waits until clients in Pods and on nodes are served at the ClusterIP, and one outside at both nodes.
fn up(lab: &Lab, service: &Service<'_>) -> Result<()> {
    CLIENTS.iter().try_for_each(|client| served(lab.at(client)?, Tcp, service.at(80)?, &PODS))?;
    served_at(lab.at(OUTSIDE)?, Tcp, &service.at_nodes()?, &PODS)
}

/// Beside what the case asks: nobody misses the proxy while it is away, and it serves what came meanwhile.
pub(crate) fn should_work_after_restarting_kube_proxy() -> Result<()> {
    let mut lab = alone()?;
    let first = service(&lab, "restart-1")?;
    up(&lab, &first)?;
    let first = first.leave();
    for node in &lab.cluster.nodes {
        node.daemons[1].terminate(PATIENCE)?;
    }
    let shown = first.again(&lab);
    up(&lab, &shown).context("while no proxy runs")?;
    let first = shown.leave();
    let second = service(&lab, "restart-2")?.leave();
    for node in &mut lab.cluster.nodes {
        node.start_proxy()?;
    }
    for left in [first, second] {
        up(&lab, &left.again(&lab))?;
    }
    Ok(())
}

pub(crate) fn should_work_after_restarting_apiserver() -> Result<()> {
    let mut lab = alone()?;
    let first = service(&lab, "apiserver-1")?;
    up(&lab, &first)?;
    let before = first.address()?;
    let first = first.leave();
    lab.cluster.server.stop()?;
    let shown = first.again(&lab);
    up(&lab, &shown).context("while no API server runs")?;
    let first = shown.leave();
    lab.cluster.server.start_again()?;
    let second = service(&lab, "apiserver-2")?;
    ensure!(second.address()? != before, "{before} was given twice");
    up(&lab, &second)?;
    up(&lab, &first.again(&lab))
}

/// kube-proxy's rules are chains of iptables, ours a table.
pub(crate) fn should_recreate_its_iptables_rules_if_they_are_deleted() -> Result<()> {
    let lab = alone()?;
    let service = service(&lab, "deleted-rules")?;
    up(&lab, &service)?;
    for node in &lab.cluster.nodes {
        node.host.run(&["nft", "delete", "table", "ip", "ipvs-proxy"])?;
    }
    up(&lab, &service)
}
