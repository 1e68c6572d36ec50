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
//! | [`networks`] | which networks can stand side by side |

pub(crate) mod claims;
pub(crate) mod frontend;
pub(crate) mod networks;
#[cfg(test)]
mod oracle;
pub(crate) mod route;
pub(crate) mod select;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use claims::{Claims, Delta};
pub(crate) use frontend::{Frontend, FrontendKey};

use self::frontend::places;
use self::select::{Choice, Here};
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;

/// What one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServicePlan {
    /// The Service's creation time, which decides conflicts; see [`Service::created`].
    pub(crate) created: Arc<str>,
    /// What is to be served at which address and port, in the order of the keys.
    frontends: Box<[(FrontendKey, Frontend)]>,
}

impl ServicePlan {
    /// The plan of a Service created at `created` with these frontends.
    #[must_use]
    pub(crate) fn new(created: impl Into<Arc<str>>, frontends: BTreeMap<FrontendKey, Frontend>) -> Self {
        Self { created: created.into(), frontends: frontends.into_iter().collect() }
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

/// Plans one Service. Endpoints are chosen once for each port and family.
pub(crate) fn plan<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    here: &Here,
) -> ServicePlan {
    let of_port = |port| {
        let choices: BTreeMap<_, _> = service
            .families()
            .into_iter()
            .map(|family| (family, Choice::of((service, port), family, slices.clone(), here)))
            .collect();
        let frontend = move |(key, kind): (FrontendKey, _)| {
            let choice = choices.get(&key.family())?;
            Some((key, Frontend::new(service, (&key, kind), choice, here)))
        };
        places(service, port).into_iter().filter_map(frontend)
    };
    ServicePlan::new(Arc::clone(&service.created), service.ports.iter().flat_map(of_port).collect())
}
