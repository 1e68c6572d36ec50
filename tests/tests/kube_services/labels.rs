//! Labels by which a Service is somebody else's.
//!
//! Invariant: another Service stays served all the time.

use anyhow::Result;
use serde_json::{Value, json};

use super::ask::{Tcp, served, unanswered};
use super::lab;
use crate::kube_cluster::NODES;

fn down_while_labelled(name: &str, label: &str, value: &str) -> Result<()> {
    let lab = lab()?;
    let other = lab.service(&format!("{name}-other"), json!({}))?;
    let service = lab.service(name, json!({}))?;
    for each in [&other, &service] {
        each.select(&["b1"])?;
    }
    let clients = [lab.at("a1")?, lab.at(NODES[0])?, lab.at("b2")?];
    for round in ["without", "with", "again without"] {
        let is_down = round == "with";
        service.label(json!({label: if is_down { value.into() } else { Value::Null }}))?;
        for client in clients {
            let to = service.at(80)?;
            if is_down { unanswered(client, Tcp, to) } else { served(client, Tcp, to, &["b1"]) }?;
            served(client, Tcp, other.at(80)?, &["b1"])?;
        }
    }
    Ok(())
}

pub(crate) fn should_implement_service_kubernetes_io_service_proxy_name() -> Result<()> {
    down_while_labelled("proxy-name", "service.kubernetes.io/service-proxy-name", "foo-bar")
}

pub(crate) fn should_implement_service_kubernetes_io_headless() -> Result<()> {
    down_while_labelled("headless", "service.kubernetes.io/headless", "")
}
