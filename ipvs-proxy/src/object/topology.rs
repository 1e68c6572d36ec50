//! `Topology`: where an endpoint runs, and whose clients it is meant for.
//!
//! Invariant: endpoints that say the same share one, in whichever slices they are, as soon as these are [known](Topologies): a cluster
//! has many endpoints and few nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::slice::EndpointSlice;

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Topology {
    /// Name of its node, if the slice says.
    pub(crate) node: Option<Box<str>>,
    /// Whose clients it is meant for, if the slice says.
    pub(crate) hints: Option<Hints>,
}

/// Whose clients an endpoint is meant for (`hints`); an empty list says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hints {
    /// Those of these zones.
    pub(crate) zones: Box<[Box<str>]>,
    /// Those on these nodes.
    pub(crate) nodes: Box<[Box<str>]>,
}

/// With so many known, those that no endpoint has any more are searched for; the first time.
const MANY: usize = 1024;

/// What is known to be shared.
#[derive(Debug)]
pub(crate) struct Topologies {
    known: BTreeSet<Arc<Topology>>,
    /// With so many, those that no endpoint has any more are searched for.
    limit: usize,
}

impl Default for Topologies {
    fn default() -> Self {
        Self { known: BTreeSet::new(), limit: MANY }
    }
}

impl Topologies {
    /// Has the endpoints of a slice share what others have already.
    pub(crate) fn share(&mut self, slice: &mut EndpointSlice) {
        for endpoint in &mut slice.endpoints {
            match self.known.get(&endpoint.topology) {
                Some(known) => endpoint.topology = Arc::clone(known),
                None => self.add(&endpoint.topology),
            }
        }
    }

    fn add(&mut self, topology: &Arc<Topology>) {
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = MANY.max(self.known.len().saturating_mul(2));
        }
        self.known.insert(Arc::clone(topology));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(node: &str) -> EndpointSlice {
        let labels = json!({"kubernetes.io/service-name": "web"});
        let endpoint = |last: u8| json!({"addresses": [format!("172.7.21.{last}")], "nodeName": node});
        let object = json!({"kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": labels},
            "addressType": "IPv4", "ports": [], "endpoints": [endpoint(2), endpoint(3)]});
        EndpointSlice::from_json(&object).unwrap()
    }

    #[test]
    fn endpoints_that_say_the_same_share_it_and_what_nobody_says_any_more_is_forgotten() {
        let mut topologies = Topologies::default();
        let mut slices = [slice("n1"), slice("n1"), slice("n2")];
        slices.iter_mut().for_each(|slice| topologies.share(slice));
        assert_eq!((&slices[1], &slices[2]), (&slice("n1"), &slice("n2")));
        let [one, other, third] = slices.each_ref().map(|slice| &slice.endpoints[1].topology);
        assert!(Arc::ptr_eq(one, other) && Arc::ptr_eq(one, &slices[0].endpoints[0].topology));
        assert!(!Arc::ptr_eq(one, third));
        for number in 0..3 * MANY {
            topologies.share(&mut slice(&format!("gone{number}")));
            assert!(topologies.known.len() <= MANY, "{number}");
        }
        let before = Arc::clone(&slices[0].endpoints[0].topology);
        slices.iter_mut().for_each(|slice| topologies.share(slice));
        assert!(Arc::ptr_eq(&before, &slices[0].endpoints[0].topology), "it is in use");
    }
}
