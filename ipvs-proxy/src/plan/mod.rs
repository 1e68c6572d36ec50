//! From Services and EndpointSlices to what is to be served where. Pure, and neutral of the data path.
//!
//! [`plan`] takes one Service and returns a [`ServicePlan`]; [`Claims`] keeps the plans of all Services and says, for
//! each new one, which frontends change. Nothing here costs more than the Service that changed.
//!
//! | module | what it says |
//! |---|---|
//! | [`frontend`] | where clients connect on behalf of a Service |
//! | [`select`] | which endpoints take its connections |
//! | [`route`] | which of them each class of client is led to |
//! | [`claims`] | whose an address and port is, and what each change changes |
//! | [`findings`] | what of each Service is not served or was left out |
//! | [`here`] | this node, as far as plans depend on it |
//! | [`pods`] | how clients are known for Pods |
//! | [`remarks`] | where flags, Node object and machine differ |
//! | [`check`] | what a load balancer asks this node about a Service |
//! | [`announced`] | which networks the API server announces for ClusterIPs |
//! | [`networks`] | which networks can stand side by side |

pub(crate) mod announced;
pub(crate) mod check;
pub(crate) mod claims;
pub(crate) mod findings;
pub(crate) mod frontend;
pub(crate) mod here;
pub(crate) mod networks;
pub(crate) mod pods;
pub(crate) mod remarks;
pub(crate) mod route;
pub(crate) mod select;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) use claims::{Claims, Delta};
pub(crate) use frontend::{Frontend, FrontendKey};

use self::frontend::{Kind, Place, places};
use self::here::Here;
use self::route::Answer;
use self::select::Choice;
use crate::object::service::{Service, ServicePort};
use crate::object::slice::{Endpoint, EndpointSlice};

/// What one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServicePlan {
    /// The Service's creation time, which decides conflicts; see [`Service::created`].
    pub(crate) created: Arc<str>,
    /// What is to be served at which address and port, in the order of the keys.
    frontends: Box<[(FrontendKey, Frontend)]>,
    /// Its ports without an endpoint here.
    pub(crate) no_local: NoLocal,
}

/// How many ports of Services have endpoints, but none on this node, where the policy is Local; a port counts once, in whichever family
/// it lacks one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NoLocal {
    /// At virtual addresses (`internalTrafficPolicy`).
    pub(crate) internal: u32,
    /// At every other address (`externalTrafficPolicy`).
    pub(crate) external: u32,
}

impl NoLocal {
    /// Of one port with these frontends.
    fn of(frontends: &[(FrontendKey, Frontend)]) -> Self {
        let drops = |internal: bool| {
            let of = frontends.iter().filter(|(_, frontend)| (frontend.kind == Kind::ClusterIp) == internal);
            u32::from(of.map(|(_, frontend)| &frontend.routes.outside.answer).any(|answer| *answer == Answer::Drop))
        };
        Self { internal: drops(true), external: drops(false) }
    }

    /// With another one added.
    #[must_use]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            internal: self.internal.saturating_add(other.internal),
            external: self.external.saturating_add(other.external),
        }
    }

    /// With one taken away that was added before.
    #[must_use]
    pub(crate) const fn minus(self, other: Self) -> Self {
        Self {
            internal: self.internal.saturating_sub(other.internal),
            external: self.external.saturating_sub(other.external),
        }
    }
}

impl ServicePlan {
    /// The plan of a Service created at `created` with these frontends.
    #[must_use]
    pub(crate) fn new(created: impl Into<Arc<str>>, frontends: BTreeMap<FrontendKey, Frontend>) -> Self {
        Self { created: created.into(), frontends: frontends.into_iter().collect(), no_local: NoLocal::default() }
    }

    /// The virtual addresses that it is planned at, in order.
    #[must_use]
    pub(crate) fn virtual_addresses(&self) -> BTreeSet<IpAddr> {
        let of = |(key, frontend): &(FrontendKey, Frontend)| match key.place {
            Place::Address(addr) if frontend.kind == Kind::ClusterIp => Some(addr),
            _ => None,
        };
        self.frontends.iter().filter_map(of).collect()
    }

    /// Gives all its frontends the scheduler of everybody who asks for none.
    pub(crate) fn use_common_scheduler(&mut self) {
        self.frontends.iter_mut().for_each(|(_, frontend)| frontend.scheduler = None);
    }

    /// What is to be served, in the order of the keys.
    pub(crate) const fn frontends(&self) -> &[(FrontendKey, Frontend)] {
        &self.frontends
    }

    /// What is to be served at `key`.
    pub(crate) fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        let place = self.frontends.binary_search_by_key(key, |(key, _)| *key).ok()?;
        self.frontends.get(place).map(|(_, frontend)| frontend)
    }
}

/// Ports of a Service that none of its slices has an endpoint port for, as `field: value`: clients of them are refused for ever,
/// mostly for a name that is spelt in two ways.
#[must_use]
pub(crate) fn unmatched<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice> + Clone) -> Vec<String> {
    let offered = || slices.clone().flat_map(|slice| slice.ports.iter());
    let has_port = |port: &ServicePort| offered().any(|p| p.name == port.name && p.protocol == port.protocol);
    let is_empty = slices.clone().all(|slice| slice.endpoints.is_empty());
    let missing = service.ports.iter().filter(|port| !is_empty && !has_port(port));
    let text = |port: &ServicePort| {
        format!("spec.ports: {} {:?}, which no EndpointSlice has a port for", port.protocol, port.name)
    };
    missing.map(text).collect()
}

/// What a Service asks for by `trafficDistribution` whose slices have endpoints and not one hint: proxies read hints alone, which whoever
/// writes the slices makes of it.
#[must_use]
pub(crate) fn unhinted<'a>(service: &Service, slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Option<String> {
    let distribution = service.distribution?;
    let mut endpoints = slices.into_iter().flat_map(|slice| &slice.endpoints).peekable();
    endpoints.peek()?;
    let none = endpoints.all(|endpoint| endpoint.topology.hints.is_none());
    none.then(|| format!("spec.trafficDistribution: {distribution}, for which no endpoint has a hint: all are used"))
}

/// True when the plan of a Service depends on the zone of this node.
pub(crate) fn depends_on_zone<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> bool {
    let meant_for_zones =
        |endpoint: &Endpoint| endpoint.topology.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty());
    slices.into_iter().any(|slice| slice.endpoints.iter().any(meant_for_zones))
}

/// Plans one Service at the virtual addresses `addresses`. Endpoints are chosen once for each port and family.
pub(crate) fn plan<'a>(
    service: &Service,
    addresses: &[IpAddr],
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    here: &Here,
) -> ServicePlan {
    let of_port = |port| {
        let choices: BTreeMap<_, _> = service
            .families()
            .into_iter()
            .map(|family| (family, Choice::of(port, family, slices.clone(), here).weighted(service.weights)))
            .collect();
        let frontend = move |(key, kind): (FrontendKey, _)| {
            let choice = choices.get(&key.family())?;
            Some((key, Frontend::new((service, port), (&key, kind), choice, here)))
        };
        places(service, port, addresses).into_iter().filter_map(frontend).collect::<Vec<_>>()
    };
    let mut no_local = NoLocal::default();
    let of_all =
        service.ports.iter().map(of_port).inspect(|frontends| no_local = no_local.plus(NoLocal::of(frontends)));
    let frontends = of_all.flatten().collect();
    ServicePlan { no_local, ..ServicePlan::new(Arc::clone(&service.created), frontends) }
}
