//! A right that is missing is named by verb and resource as RBAC has them, with what grants it, for each of the calls.

use anyhow::{Context, Result};
use lab::kubernetes::{ApiServer, Faults, Release};

use crate::begin;
use crate::proxy::{Nodes, SOON};

/// Group, resource, verb of each call.
const CALLS: [(&str, &str, &str); 7] = [
    ("", "services", "list"),
    ("", "services", "watch"),
    ("discovery.k8s.io", "endpointslices", "list"),
    ("discovery.k8s.io", "endpointslices", "watch"),
    ("", "nodes", "list"),
    ("", "nodes", "watch"),
    ("", "events", "create"),
];

pub(crate) fn each_right_that_is_missing_is_named_with_what_grants_it() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    let faults = Faults::start(&server, nodes.node()?)?;
    for missing in CALLS {
        let (group, resource, verb) = missing;
        let rest: Vec<_> = CALLS.into_iter().filter(|call| *call != missing).collect();
        let account = format!("without-{verb}-{resource}");
        let token = server.token_with(&account, &rest)?;
        let proxy = begin(&nodes, &faults.kubeconfig().token(&token))?;
        let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let grants = "the ClusterRole of configs/kubernetes/ipvs-proxy";
        let text = format!("this needs the verb `{verb}` for `{resource}`: apply {grants}, which grants it");
        proxy.wait_for_line(&text, SOON).context(account)?;
    }
    Ok(())
}
