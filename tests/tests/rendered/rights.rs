//! What a role allows, and what an account has asked an API server for, as its audit log tells.
//!
//! Invariant: pure. A right is one verb of one resource, so that both sides can be compared.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::{Objects, text_at};

/// Group, resource with its part, verb.
pub(crate) type Right = (String, String, String);

/// The rights that the role gives.
pub(crate) fn allowed(objects: &Objects, role: &str) -> BTreeSet<Right> {
    let rules = &objects[&("ClusterRole".to_owned(), role.to_owned())]["rules"];
    let mut rights = BTreeSet::new();
    for rule in rules.as_array().unwrap() {
        let texts = |field: &str| rule[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
        for group in texts("apiGroups") {
            for resource in texts("resources") {
                rights.extend(texts("verbs").map(|verb| (group.clone(), resource.clone(), verb)));
            }
        }
    }
    rights
}

/// Those of resources that Kubernetes 1.20 has. It has no ServiceCIDRs: `service_cidrs_of_the_api_are_followed` of proxy_kubernetes has their calls.
pub(crate) fn served_by_1_20(rights: BTreeSet<Right>) -> BTreeSet<Right> {
    rights.into_iter().filter(|(_, resource, _)| resource != "servicecidrs").collect()
}

/// What the account of our namespace has asked for, by the lines of an audit log. What was refused counts as well, so that a right that
/// the role lacks is one too many: a server that was just started refuses for a moment what its roles allow, until it has read them.
pub(crate) fn used(log: &str, account: &str) -> Result<BTreeSet<Right>> {
    let name = format!("system:serviceaccount:kube-system:{account}");
    let mut rights = BTreeSet::new();
    // A server that is killed leaves half of a line, and the next one writes behind it.
    for call in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if call["user"]["username"] != name.as_str() || call["objectRef"].is_null() {
            continue;
        }
        let part = |field: &str| call["objectRef"][field].as_str().unwrap_or_default().to_owned();
        let resource = [part("resource"), part("subresource")].into_iter().filter(|text| !text.is_empty());
        let resource = resource.collect::<Vec<_>>().join("/");
        rights.insert((part("apiGroup"), resource, text_at(&call, "/verb")?.to_owned()));
    }
    Ok(rights)
}
