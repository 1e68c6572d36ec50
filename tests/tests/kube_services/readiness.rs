//! Pods that are not ready, and Services that publish them all the same.
//!
//! Invariant: a Pod's readiness changes by its gate alone; its server answers all the time.

use anyhow::Result;
use serde_json::json;

use super::ask::{Tcp, once, refused, served, served_at, unanswered};
use super::lab;
use super::server::{PORT, Wanted};
use crate::kube_cluster::NODES;

pub(crate) fn should_create_endpoints_for_unready_pods() -> Result<()> {
    let lab = lab()?;
    let mut service = lab.service("unready", json!({"publishNotReadyAddresses": true}))?;
    let pod = lab.run(&Wanted::pod("unready-pod", NODES[0]).of("unready").gated().lasting())?;
    let clients = [lab.at("b1")?, lab.at("a1")?];
    let reached = |to| clients.iter().try_for_each(|client| served(*client, Tcp, to, &["unready-pod"]));
    let to = service.at(80)?;
    reached(to)?;
    service.change(json!({"publishNotReadyAddresses": false}))?;
    clients.iter().try_for_each(|client| refused(*client, to))?;
    service.change(json!({"publishNotReadyAddresses": true}))?;
    reached(to)?;
    pod.terminate(&lab)?;
    reached(to)?;
    pod.end(&lab)?;
    clients.iter().try_for_each(|client| refused(*client, to))
}

/// Two Pods that are not ready, and are being deleted.
fn terminating_and_unready(name: &str, publish: bool) -> Result<()> {
    let lab = lab()?;
    let service = lab.service(name, json!({"type": "NodePort", "publishNotReadyAddresses": publish}))?;
    let names = [format!("{name}-a"), format!("{name}-b")];
    let mut pods = Vec::new();
    for (pod, node) in names.iter().zip(NODES) {
        pods.push(lab.run(&Wanted::pod(pod, node).of(name).gated().lasting())?);
    }
    let names = names.each_ref().map(String::as_str);
    for pod in &pods {
        pod.set_ready(&lab, true)?;
    }
    let clients = [lab.at("a1")?, lab.at("b1")?];
    for client in clients {
        served(client, Tcp, service.at(80)?, &names)?;
        served_at(client, Tcp, &service.at_nodes()?, &names)?;
    }
    for pod in &pods {
        // A kubelet of 1.20 looks at no gate of a Pod that is being deleted.
        pod.set_ready(&lab, false)?;
    }
    for client in clients {
        let to = service.at(80)?;
        if publish { served(client, Tcp, to, &names) } else { refused(client, to) }?;
    }
    for pod in &pods {
        pod.terminate(&lab)?;
    }
    for client in clients {
        for to in [&[service.at(80)?][..], &service.at_nodes()?].concat() {
            if publish { served(client, Tcp, to, &names) } else { unanswered(client, Tcp, to) }?;
        }
    }
    pods.iter().try_for_each(|pod| pod.end(&lab))
}

pub(crate) fn should_be_able_to_connect_to_terminating_and_unready_endpoints_if_published() -> Result<()> {
    terminating_and_unready("published", true)
}

pub(crate) fn should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_not_published() -> Result<()> {
    terminating_and_unready("unpublished", false)
}

/// Pods of the other node become ready one after the other, and stop to be.
pub(crate) fn should_update_endpoints() -> Result<()> {
    let lab = lab()?;
    let service = lab.service("updated", json!({}))?;
    let pod = lab.run(&Wanted::pod("updated-pod", NODES[1]).of("updated").gated())?;
    service.select(&["a1"])?;
    let (client, to) = (lab.at("a2")?, service.at(80)?);
    served(client, Tcp, to, &["a1"])?;
    pod.set_ready(&lab, true)?;
    served(client, Tcp, to, &["a1", "updated-pod"])?;
    pod.set_ready(&lab, false)?;
    served(client, Tcp, to, &["a1"])?;
    once(pod.at(), Tcp, (pod.address, PORT).into())?;
    pod.end(&lab)
}
