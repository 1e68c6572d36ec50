//! `Findings`: what is to be said of each Service and its EndpointSlices, kept from when it was planned.
//!
//! Invariant: what stands here is what was true of the Service when it was last planned, and nothing stands here of one that has
//! nothing to be said of. Whoever reports reads no object.

use std::collections::BTreeMap;

use crate::object::ObjectName;
use crate::object::key::ObjectKey;

/// What is to be said of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it asks for and does not get, as `field: value`.
    pub(crate) not_served: Vec<String>,
    /// Elements that cannot be read and are left out, as `field: value; accepted: form`.
    pub(crate) skipped: Vec<String>,
}

impl Finding {
    const fn is_empty(&self) -> bool {
        self.not_served.is_empty() && self.skipped.is_empty()
    }
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings(BTreeMap<ObjectName, BTreeMap<ObjectKey, Finding>>);

impl Findings {
    /// Puts what is to be said of a Service and its slices in place of what was.
    pub(crate) fn set(&mut self, service: &ObjectName, found: impl IntoIterator<Item = (ObjectKey, Finding)>) {
        let found: BTreeMap<_, _> = found.into_iter().filter(|(_, finding)| !finding.is_empty()).collect();
        if found.is_empty() {
            self.0.remove(service);
        } else {
            self.0.insert(service.clone(), found);
        }
    }

    /// All of it, with the Service that it belongs to.
    pub(crate) fn by_service(&self) -> impl Iterator<Item = (&ObjectName, &Finding)> {
        self.0.iter().flat_map(|(service, found)| found.values().map(move |finding| (service, finding)))
    }

    /// All of it, each Service before its slices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Finding)> {
        self.0.values().flatten()
    }
}
