//! What this program reports as Events of Kubernetes: of its Node and of Services, in the words of kube-proxy, or of the API server,
//! where these have any for the same.
//!
//! Invariant: a report reads no object; of what is wrong with many Services a part is reported, as in the status.

use std::collections::BTreeMap;

use cluster::kubernetes::Client;
use cluster::kubernetes::events::{Grade, Notice, Recorder, Reporter, Subject};
use daemon::http::{Routes, Unserved};
use daemon::status::LISTED;

use super::NAME;
use super::checks::Unbound;
use super::held::HeldPort;
use super::proxy::Proxy;
use crate::object::ObjectName;
use crate::object::slice::of_other_family;
use crate::plan::claims::Conflict;
use crate::plan::frontend::{Kind, Place};

/// What is wrong beside what the proxy itself knows.
#[derive(Debug, Default)]
pub(super) struct Beside<'a> {
    /// Ports of health checks that cannot be bound.
    pub(super) unbound: &'a [Unbound],
    /// Addresses of pages that cannot be bound.
    pub(super) unserved: &'a [Unserved],
    /// Node ports that processes have.
    pub(super) held: &'a [HeldPort],
}

/// Reports on the node of this name from now on, beginning with the start of this program. Must be called inside a tokio runtime.
pub(super) fn start(client: &Client, node: &str, seed: u64) -> Reporter {
    let starting = Notice {
        subject: Subject::node(node),
        grade: Grade::Normal,
        reason: "Starting",
        action: "StartKubeProxy",
        message: format!("Starting {NAME}."),
        common: false,
    };
    Reporter::start(Recorder::new(client.clone(), NAME, node, seed), starting)
}

/// All that is to be reported now.
pub(super) fn notices(proxy: &Proxy, beside: &Beside<'_>) -> Vec<Notice> {
    let node = proxy.node();
    let health = beside.unserved.iter().filter(|unserved| unserved.routes == Routes::Health).map(|unserved| {
        let message = format!("failed to start proxier healthz on {}: {}", unserved.address, unserved.reason);
        let (subject, grade) = (Subject::node(node), Grade::Warning);
        let (reason, action) = ("FailedToStartProxierHealthcheck", "StartKubeProxy");
        Notice { subject, grade, reason, action, message, common: false }
    });
    let checks = beside.unbound.iter().map(|Unbound { service, at, reason }| {
        let port = at.port();
        let message = format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {at}: {reason}");
        of_service(service, "FailedToStartServiceHealthcheck", "Listen", message)
    });
    let held = beside.held.iter().map(|port| of_service(&port.service, "NodePortHeld", "Listen", port.to_string()));
    let misplaced = proxy.misplaced().iter().map(|(service, reason)| {
        of_service(service, "ClusterIPOutOfRange", "SyncProxyRules", format!("an address is not served: {reason}"))
    });
    let found = health.chain(checks.take(LISTED)).chain(held.take(LISTED)).chain(misplaced.take(LISTED));
    found.chain(conflicts(proxy)).chain(other_families(proxy)).collect()
}

fn of_service(service: &ObjectName, reason: &'static str, action: &'static str, message: String) -> Notice {
    let subject = Subject::Service { namespace: service.namespace().to_owned(), name: service.name().to_owned() };
    // What differs from node to node is in the message, and so in the Event's name.
    Notice { subject, grade: Grade::Warning, reason, action, message, common: true }
}

/// Services that claim what another one has; one Event for each of them and kind of claim.
fn conflicts(proxy: &Proxy) -> Vec<Notice> {
    let mut claims: BTreeMap<(ObjectName, &'static str), (String, usize)> = BTreeMap::new();
    let captured = proxy.claims().captured(proxy.node_port_addresses());
    for conflict in proxy.claims().conflicts().chain(captured).take(LISTED) {
        let reason = reason(proxy, &conflict);
        let claim = claims.entry((conflict.refused.clone(), reason));
        claim.or_insert_with(|| (conflict.to_string(), 0)).1 += 1;
    }
    let notice = |((service, reason), (first, count)): ((ObjectName, &'static str), (String, usize))| {
        let further = if count > 1 { format!(", and {} further ones", count - 1) } else { String::new() };
        let message =
            format!("{first}{further}; this Service is not served there: give one of them another address or port");
        of_service(&service, reason, "SyncProxyRules", message)
    };
    claims.into_iter().map(notice).collect()
}

/// The API server's words for a node port and a virtual address that it has given out twice.
fn reason(proxy: &Proxy, conflict: &Conflict) -> &'static str {
    let frontend = proxy.claims().plan(&conflict.refused).and_then(|plan| plan.frontend(&conflict.key));
    match (conflict.key.place, frontend.map(|frontend| frontend.kind)) {
        (Place::AnyNode(_), _) => "PortAlreadyAllocated",
        (Place::Address(_), Some(Kind::ClusterIp)) => "ClusterIPAlreadyAllocated",
        (Place::Address(_), _) => "AddressAlreadyAllocated",
    }
}

/// Services with an endpoint of another family than its slice says.
fn other_families(proxy: &Proxy) -> impl Iterator<Item = Notice> {
    let found = proxy.findings().by_service().flat_map(|(service, finding)| {
        let addresses = finding.skipped.iter().filter_map(|element| of_other_family(element));
        addresses.map(move |addr| {
            let message = format!("{addr} in endpointslice has incorrect IP version");
            of_service(service, "KubeProxyIncorrectIPVersion", "GatherEndpoints", message)
        })
    });
    found.take(LISTED)
}
