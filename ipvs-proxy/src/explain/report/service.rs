//! What is asked for at a place: the Service, its policies, its endpoints, and why a client reaches none.

use std::net::{IpAddr, SocketAddr};

use netstate::IpFamily;
use netstate::nft::{Row, RowKey};
use serde::Serialize;

use super::super::sites::Site;
use super::super::walk::Outcome;
use super::clients::{Class, Walks};
use crate::dataplane::record;
use crate::facts::Facts;
use crate::object::service::{Distribution, Policy, Service, Sources};
use crate::plan::frontend::{Kind, Place};
use crate::plan::select::Locality;
use crate::plan::select::reasons::{Judged, judged};
use crate::plan::{Frontend, unhinted, unmatched};

/// The Service that has a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Served {
    /// Its name.
    pub(crate) name: String,
    /// What the place is to it.
    pub(crate) kind: String,
    /// The name of its port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) port: String,
    /// The policy that counts there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) policy: String,
    /// Seconds a client stays with its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) affinity: Option<u32>,
    /// How many bits of an address are one client, as the annotation has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) affinity_prefix: Option<String>,
    /// What endpoints weigh, as the annotation has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weights: Option<String>,
    /// Whose endpoints are preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) distribution: Option<&'static str>,
    /// Networks of the clients that may connect; everybody may where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sources: Vec<String>,
}

/// An endpoint of the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoint {
    /// Its address and port.
    pub(crate) endpoint: SocketAddr,
    /// Where it runs.
    pub(crate) on: &'static str,
    /// Why it takes no connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) out: Option<String>,
    /// Why it takes none of clients that may use this node's endpoints only, where the policy says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) out_by_policy: Option<String>,
}

const fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIp => "clusterIP",
        Kind::NodePort => "node port",
        Kind::External => "external IP",
        Kind::LoadBalancer => "address of the load balancer",
    }
}

/// The policy that counts for what the place is to its Service, with its field.
fn policy(service: &Service, kind: Kind) -> (&'static str, Policy) {
    match kind {
        Kind::ClusterIp => ("internalTrafficPolicy", service.internal_policy),
        Kind::NodePort | Kind::External | Kind::LoadBalancer => ("externalTrafficPolicy", service.external_policy),
    }
}

impl Served {
    /// The Service at `site`: by the objects, or by the names that rows carry where these cannot be read.
    pub(super) fn of(facts: &Facts, site: &Site) -> Option<Self> {
        let Some((service, port, kind)) = site.service(facts) else {
            let (name, kind) = (recorded(facts, site)?, "of the kernel's rows".to_owned());
            let (port, policy) = (String::new(), String::new());
            return Some(Self {
                name,
                kind,
                port,
                policy,
                affinity: None,
                affinity_prefix: None,
                weights: None,
                distribution: None,
                sources: Vec::new(),
            });
        };
        let (field, policy) = policy(service, kind);
        let sources = match site.frontend(facts).map(|frontend| &frontend.sources) {
            Some(Sources::Only(ranges)) => ranges.iter().map(ToString::to_string).collect(),
            Some(Sources::Any) | None => Vec::new(),
        };
        Some(Self {
            name: service.name.to_string(),
            kind: kind_text(kind).to_owned(),
            port: port.name.clone(),
            policy: format!("{field} {policy:?}"),
            affinity: service.affinity,
            affinity_prefix: service
                .affinity_prefix
                .filter(|_| service.affinity.is_some())
                .map(|prefix| prefix.to_string()),
            weights: service.weights.map(|weights| weights.to_string()),
            distribution: service.distribution.map(|distribution| match distribution {
                Distribution::SameZone => "endpoints that hints mean for this zone",
                Distribution::SameNode => "endpoints that hints mean for this node, then for this zone",
            }),
            sources,
        })
    }
}

/// The Service whose name the rows of the kernel carry.
fn recorded(facts: &Facts, site: &Site) -> Option<String> {
    let by_record = facts.kernel.nft.get(&record::key(&site.server())).and_then(record::service);
    let named = |(key, row): (&RowKey, &Row)| match (key, row) {
        (RowKey::Element(_), Row::Element(element)) if crate::dataplane::nftables::frontend(key) == Some(site.key) => {
            element.comment.as_deref().map(str::to_owned)
        }
        _ => None,
    };
    by_record.map(|name| name.to_string()).or_else(|| facts.kernel.nft.iter().find_map(named))
}

/// What keeps a place from being served, and what else is to be known of it.
pub(super) fn notes(facts: &Facts, site: &Site) -> Vec<String> {
    let mut notes = Vec::new();
    let here = facts.planned.claims.conflicts().filter(|conflict| conflict.key == site.key);
    notes.extend(here.map(|conflict| format!("services/{} claims it as well: {conflict}", conflict.refused)));
    let Some((service, _, _)) = site.service(facts) else {
        notes.extend(facts.lost.is_none().then(|| nobody(facts, site)));
        return notes;
    };
    notes.extend(facts.planned.misplaced.get(&service.name.to_string()).map(|reason| format!("not served: {reason}")));
    notes.extend(facts.planned.plane.not_served(service).into_iter().map(|field| format!("not served yet: {field}")));
    notes.extend(unmatched(service, facts.view.slices(&service.name)));
    notes.extend(unhinted(service, facts.view.slices(&service.name)));
    notes.extend(service.skipped.iter().map(|reason| format!("left out: {reason}")));
    let slices = facts.view.slices(&service.name);
    notes.extend(slices.flat_map(|slice| {
        slice.skipped.iter().map(|reason| format!("endpointslices/{}: left out: {reason}", slice.name))
    }));
    notes
}

/// Why no Service has a place.
fn nobody(facts: &Facts, site: &Site) -> String {
    let at = |service: &&Service| {
        let others = service.external_ips.iter().chain(service.load_balancer.iter().map(|ingress| &ingress.addr));
        service.cluster_ips.iter().chain(others).any(|addr| *addr == site.at.ip())
    };
    match facts.view.services().find(at) {
        Some(service) => {
            let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
            format!("services/{} has the address and no such port; it has {}", service.name, ports.join(", "))
        }
        None => "no Service has this address and port".to_owned(),
    }
}

/// Every endpoint of the port, those that take connections and the others.
pub(super) fn endpoints(facts: &Facts, site: &Site) -> Vec<Endpoint> {
    let Some((service, port, kind)) = site.service(facts) else { return Vec::new() };
    let family = IpFamily::of(site.at.ip());
    let is_local = policy(service, kind).1 == Policy::Local;
    let one = |Judged { backend, cluster, local }: Judged| Endpoint {
        endpoint: SocketAddr::new(backend.addr, backend.port),
        on: match backend.locality {
            Locality::Here => "this node",
            Locality::Elsewhere => "another node",
            Locality::Unknown => "an unknown node",
        },
        out: cluster.map(|reason| reason.to_string()),
        out_by_policy: local.filter(|_| is_local).map(|reason| reason.to_string()),
    };
    judged(port, family, facts.view.slices(&service.name), &facts.here).into_iter().map(one).collect()
}

/// Why a client reaches no endpoint, as far as it is known.
pub(super) fn why(facts: &Facts, site: &Site, walks: &Walks, (from, class): (IpAddr, Class)) -> Option<String> {
    let frontend = site.frontend(facts)?;
    let is_endpoint = |outcome: &Outcome| matches!(outcome, Outcome::Endpoint { .. });
    if walks.planned.outcomes.iter().any(is_endpoint) {
        return Some("the kernel does not hold what is planned: see the rows".to_owned());
    }
    if let Sources::Only(ranges) = &frontend.sources
        && !ranges.iter().any(|range| range.contains(from))
    {
        return Some(format!("loadBalancerSourceRanges let only {} in", listed(ranges)));
    }
    by_plan(facts, site, frontend, class)
}

fn listed(ranges: &[netstate::Prefix]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Why the plan has no endpoint for a class of clients.
fn by_plan(facts: &Facts, site: &Site, frontend: &Frontend, class: Class) -> Option<String> {
    use crate::plan::route::Answer;
    let routes = &frontend.routes;
    let route = match class {
        Class::Pod => &routes.pod,
        Class::Node => &routes.node,
        Class::Outside => &routes.outside,
    };
    let all = endpoints(facts, site);
    match route.answer {
        Answer::Reject if all.is_empty() => Some("the port has no endpoint".to_owned()),
        Answer::Reject => Some(format!("none of the {} endpoints takes connections", all.len())),
        Answer::Drop => {
            Some("the policy Local asks for an endpoint on this node, and none here takes connections".to_owned())
        }
        Answer::Backends(_) => {
            let what = if matches!(site.key.place, Place::AnyNode(_)) { "node ports" } else { "it" };
            Some(format!("the data path does not serve {what}"))
        }
    }
}
