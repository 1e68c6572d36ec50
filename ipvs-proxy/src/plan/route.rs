//! `Routes`: where each class of client is led at a frontend, and with which source address it arrives.
//!
//! | at | policy | a Pod | this node | anybody else |
//! |---|---|---|---|---|
//! | the virtual address | Cluster | all | all, masqueraded | all, masqueraded |
//! | the virtual address | Local | local | local, masqueraded | local, masqueraded |
//! | every other address | Cluster | all, masqueraded | all, masqueraded | all, masqueraded |
//! | every other address | Local | all | all, masqueraded | local |
//!
//! "All" and "local" are the endpoints of a [`Choice`]. The policy Local is about traffic that a load balancer spreads over the
//! nodes; a client inside the cluster has no other way in, so it reaches all endpoints. Invariants: a Service without any endpoint
//! refuses, one whose endpoints may not be used from here drops (the load balancer shall try another node). A Pod that reaches
//! itself is masqueraded whatever is said here: that depends on the endpoint, and the data path sees to it.

use std::sync::Arc;

use netstate::IpFamily;

use super::here::Here;
use super::select::{Backend, Choice};
use crate::object::service::Policy;

/// Where each class of client is led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Routes {
    /// Sources inside the Pod network.
    pub(crate) pod: Route,
    /// Sources that are addresses of this node.
    pub(crate) node: Route,
    /// Every other source.
    pub(crate) outside: Route,
}

/// Where a client is led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// What becomes of its connections.
    pub(crate) answer: Answer,
    /// Backends see the node's address in place of the client's.
    pub(crate) masquerade: bool,
}

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One of these backends takes it; there is at least one.
    Backends(Arc<[Backend]>),
    /// The client learns at once that nobody does.
    Reject,
    /// Nothing is answered.
    Drop,
}

impl Answer {
    /// Who takes connections.
    #[must_use]
    pub(crate) fn backends(&self) -> &[Backend] {
        match self {
            Self::Backends(backends) => backends,
            Self::Reject | Self::Drop => &[],
        }
    }
}

impl Routes {
    /// At a virtual address of the Service network.
    #[must_use]
    pub(crate) fn internal((policy, family): (Policy, IpFamily), choice: &Choice, here: &Here) -> Self {
        let to = answer(policy, choice);
        // Without knowing the Pods nobody can say who is not one.
        let others = here.masquerade_all || here.knows_pods(family);
        Self {
            pod: Route { answer: to.clone(), masquerade: here.masquerade_all },
            node: Route { answer: to.clone(), masquerade: others },
            outside: Route { answer: to, masquerade: others },
        }
    }

    /// At an address of the node, of a load balancer, or of `spec.externalIPs`.
    #[must_use]
    pub(crate) fn external((policy, family): (Policy, IpFamily), choice: &Choice, here: &Here) -> Self {
        let all = answer(Policy::Cluster, choice);
        let node = Route { answer: all.clone(), masquerade: true };
        let outside = Route { answer: answer(policy, choice), masquerade: policy == Policy::Cluster };
        let pod = match policy {
            Policy::Local if here.knows_pods(family) => Route { answer: all, masquerade: false },
            _ => outside.clone(),
        };
        Self { pod, node, outside }
    }
}

/// What a policy makes of a choice.
fn answer(policy: Policy, choice: &Choice) -> Answer {
    let chosen = match policy {
        Policy::Cluster => &choice.cluster,
        Policy::Local => &choice.local,
    };
    match (chosen.is_empty(), choice.any) {
        (false, _) => Answer::Backends(Arc::clone(chosen)),
        (true, true) => Answer::Drop,
        (true, false) => Answer::Reject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_masqueraded_at_a_virtual_address_by_what_is_known_and_asked_for() {
        let pods = || ["172.7.0.0/16".parse().unwrap()];
        for (here, masqueraded) in [
            (Here::on("n1").with_pods([]), [false, false, false]),
            (Here::on("n1").with_pods(pods()), [false, true, true]),
            (Here { masquerade_all: true, ..Here::on("n1").with_pods([]) }, [true, true, true]),
            (Here { masquerade_all: true, ..Here::on("n1").with_pods(pods()) }, [true, true, true]),
        ] {
            let routes = Routes::internal((Policy::Cluster, IpFamily::V4), &Choice::default(), &here);
            let found = [&routes.pod, &routes.node, &routes.outside].map(|route| route.masquerade);
            assert_eq!(found, masqueraded, "{here:?}");
        }
    }
}
