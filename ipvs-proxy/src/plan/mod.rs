//! From Services and EndpointSlices to what is to be served where. Pure, and neutral of the data path.
//!
//! [`plan`] takes one Service and returns a [`ServicePlan`]; [`Claims`] keeps the plans of all Services and says, for
//! each new one, which frontends change. Nothing here costs more than the Service that changed.
//!
//! | module | what it says |
//! |---|---|
//! | [`frontend`] | where clients connect on behalf of a Service |
//! | [`mod@select`] | which endpoints take its connections |
//! | [`claims`] | whose an address and port is, and what each change changes |
//! | [`networks`] | which networks can stand side by side |

pub(crate) mod claims;
pub(crate) mod frontend;
pub(crate) mod networks;
pub(crate) mod select;

use std::collections::BTreeMap;

pub(crate) use claims::{Claims, Delta};
pub(crate) use frontend::{Frontend, FrontendKey};

use self::frontend::frontends;
use self::select::{Here, select};
use crate::object::service::{Policy, Service};
use crate::object::slice::EndpointSlice;

/// What one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServicePlan {
    /// The Service's creation time, which decides conflicts; see [`Service::created`].
    pub(crate) created: String,
    /// What is to be served at which address and port, in the order of the keys.
    frontends: Box<[(FrontendKey, Frontend)]>,
}

impl ServicePlan {
    /// The plan of a Service created at `created` with these frontends.
    #[must_use]
    pub(crate) fn new(created: String, frontends: BTreeMap<FrontendKey, Frontend>) -> Self {
        Self { created, frontends: frontends.into_iter().collect() }
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

/// Plans one Service. A frontend that `serves` says no to claims nothing.
pub(crate) fn plan<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    here: &Here,
    serves: impl Fn(&FrontendKey, &Frontend) -> bool,
) -> ServicePlan {
    let served = frontends(service).filter(|(key, _, frontend)| serves(key, frontend));
    let whole = served.map(|(key, port, frontend)| {
        // Of the policies only Cluster is served so far; the data path names the other.
        let backends = select(port, slices.clone(), Policy::Cluster, here);
        (key, Frontend { backends, ..frontend })
    });
    ServicePlan::new(service.created.clone(), whole.collect())
}
