//! From Services and EndpointSlices to the kernel rows they need. Pure: values in, values out.
//!
//! [`plan`] looks at one Service and answers a [`ServicePlan`]; [`Desired`] keeps the plans of all Services and tells, for
//! each new one, which rows change. Nothing here costs more than the Service that changed.
//!
//! | module | what it says |
//! |---|---|
//! | [`frontend`] | where clients connect on behalf of a Service |
//! | [`select`] | which endpoints take its connections |
//! | [`claims`] | whose an address and port is, and what each change changes |
//! | [`networks`] | which networks can stand side by side |

pub(crate) mod claims;
pub(crate) mod frontend;
pub(crate) mod networks;
pub(crate) mod select;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::{VirtualServer, VirtualServerKey};

pub(crate) use claims::{Changes, Desired};

use self::frontend::frontends;
use self::select::{Backend, select};
use crate::object::ObjectName;
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;

/// What planning needs to know besides the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Name of this node, as EndpointSlices write it.
    pub(crate) node: String,
    /// The kernel's name of the scheduler for every virtual server.
    pub(crate) scheduler: String,
}

/// What one Service needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServicePlan {
    /// The Service's creation time, which decides conflicts; see [`Service::created`].
    pub(crate) created: String,
    /// What is to be served at which address and port.
    pub(crate) frontends: BTreeMap<VirtualServerKey, FrontendPlan>,
}

/// What stands behind one address and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrontendPlan {
    /// Namespace, name and port of the Service, for who reads the nft table.
    pub(crate) comment: String,
    /// How it chooses.
    pub(crate) virtual_server: VirtualServer,
    /// Where connections go; may be empty, then clients are refused.
    pub(crate) backends: BTreeSet<Backend>,
    /// Addresses of backends that may be on this node.
    pub(crate) maybe_local: BTreeSet<IpAddr>,
}

/// Plans one Service.
pub(crate) fn plan<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    settings: &Settings,
) -> ServicePlan {
    let behind = |port| {
        let selection = select(port, slices.clone(), &settings.node);
        FrontendPlan {
            comment: comment(&service.name, &port.name),
            virtual_server: VirtualServer { scheduler: settings.scheduler.clone(), persistence: None },
            backends: selection.backends,
            maybe_local: selection.maybe_local,
        }
    };
    let frontends = frontends(service).into_iter().map(|frontend| (frontend.key, behind(frontend.port)));
    ServicePlan { created: service.created.clone(), frontends: frontends.collect() }
}

/// nft comments hold at most 128 bytes.
fn comment(service: &ObjectName, port: &str) -> String {
    let text = if port.is_empty() { service.to_string() } else { format!("{service}:{port}") };
    text.chars().take(120).collect()
}
