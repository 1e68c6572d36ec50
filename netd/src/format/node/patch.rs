//! What this node writes into its Node: annotations and the condition, as patches of `nodes/<name>/status`.
//!
//! Invariant: the texts are flannel's to the byte where flannel writes them; a patch holds only what differs.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::time::rfc3339;
use netstate::family::IpFamily;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::prefix::AnnotationPrefix;
use super::wire::{Node, OwnNode};
use super::{BACKEND_DATA, BACKEND_TYPE, MANAGED, NO_DATA, OVERWRITE, PUBLIC_IP};
use crate::format::lease::LeaseAttrs;

/// The condition of a Node that says whether its Pods have a network.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

impl AnnotationPrefix {
    /// The annotations that say `attrs`, as far as they are not in `node` already. An operator's overwriting annotations count
    /// before the addresses.
    pub(crate) fn differing(&self, node: &Node, attrs: &LeaseAttrs) -> BTreeMap<String, String> {
        let kind = attrs.backend.name();
        let mut wanted = vec![(MANAGED, "true".to_owned()), (BACKEND_TYPE, kind.to_owned())];
        for family in IpFamily::ALL {
            let data = attrs.backend.data(family);
            let has_address = attrs.public_ips.get(family).is_some();
            // When flannel writes the half of a family (pkg/subnet/kube/kube.go, AcquireLease).
            let is_written = match (family, kind) {
                (IpFamily::V4, "vxlan") => data.is_some(),
                (IpFamily::V4, _) => true,
                (IpFamily::V6, "vxlan" | "wireguard") => data.is_some() && has_address,
                (IpFamily::V6, "host-gw" | "extension") => has_address,
                (IpFamily::V6, _) => false,
            };
            if !is_written {
                continue;
            }
            let data = data.as_deref().map_or(NO_DATA, RawValue::get);
            let own = attrs.public_ips.get(family).unwrap_or(family.unspecified());
            let overwritten = self.address(node, OVERWRITE.get(family), family);
            wanted.push((BACKEND_DATA.get(family), data.to_owned()));
            wanted.push((PUBLIC_IP.get(family), overwritten.unwrap_or(own).to_string()));
        }
        let differing = wanted.into_iter().filter(|(name, value)| self.get(node, name) != Some(value));
        differing.map(|(name, value)| (self.name(name), value)).collect()
    }
}

/// The patch with these annotations.
pub(crate) fn annotations_patch(annotations: &BTreeMap<String, String>) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

/// What a Node shall say of its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Pods have a network.
    Stands,
    /// They have none, or not all of it.
    Broken(String),
}

/// How a Node's condition compares with what it shall say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Observed {
    /// Word for word.
    Same,
    /// The same state in other words.
    OtherWords,
    /// Another state, or none.
    Differs,
}

impl Condition {
    const fn status(&self) -> &'static str {
        match self {
            Self::Stands => "False",
            Self::Broken(_) => "True",
        }
    }

    const fn reason(&self) -> &'static str {
        match self {
            Self::Stands => "FlannelIsUp",
            Self::Broken(_) => "FlannelIsDown",
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Stands => "Flannel is running on this node",
            Self::Broken(why) => why,
        }
    }

    /// How `node` says it.
    pub(crate) fn observed(&self, node: &OwnNode) -> Observed {
        match node.status.conditions.iter().find(|condition| condition.kind == NETWORK_UNAVAILABLE) {
            Some(there) if there.status != self.status() => Observed::Differs,
            Some(there) if there.reason == self.reason() && there.message == self.message() => Observed::Same,
            Some(_) => Observed::OtherWords,
            None => Observed::Differs,
        }
    }
}

/// The patch that makes a Node say `condition`, at `now` since 1970.
pub(crate) fn condition_patch(condition: &Condition, now: Duration) -> Value {
    let time = rfc3339(now);
    json!({"status": {"conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": condition.status(),
        "lastHeartbeatTime": time,
        "lastTransitionTime": time,
        "reason": condition.reason(),
        "message": condition.message(),
    }]}})
}
