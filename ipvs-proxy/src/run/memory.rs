//! What the kernel remembers of Services that nobody can read.
//!
//! A Service that was served, became malformed, and is found malformed by a new start of this program has no earlier value
//! here. The kernel has: the record of our virtual servers carries the Service's name, and so do the elements of the nftables data
//! path. Invariant: such a Service goes on
//! exactly as it stands in the kernel, until its objects can be read or are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netstate::ipvs::VirtualServerKey;
use netstate::nft as nft_rows;
use reconcile::{Observed, Rows};

use super::tables::Tables;
use crate::dataplane::{ipvs, nftables, record};
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::{Policy, Sources};
use crate::plan::frontend::{self, Affinity, Place};
use crate::plan::here::Here;
use crate::plan::route::Routes;
use crate::plan::select::{Backend, Choice};
use crate::plan::{Frontend, FrontendKey, ServicePlan};
use crate::source::view::View;

/// The rows of the nft tables, as the kernel holds them.
type NftRows = Rows<nft_rows::RowKey, nft_rows::Row>;

/// True while nobody can say what a Service of this name should be: it, or what may be its only slice, is malformed and has
/// no earlier value, or a file cannot be read in which its name may stand.
pub(super) fn is_in_doubt(view: &View, name: &ObjectName) -> bool {
    if view.service(name).is_some() && view.slices(name).next().is_some() {
        return false;
    }
    let may_be_it = |key: &ObjectKey| match key.kind {
        Kind::Service => key.name == *name,
        Kind::EndpointSlice => key.name.namespace() == name.namespace() && view.service(name).is_some(),
        Kind::Node => false,
    };
    let unknown = view.malformed().filter(|(_, _, kept)| !kept);
    let mut unknown = unknown.filter_map(|(key, _, _)| ObjectKey::from_etcd(&key));
    view.may_stand_unread(name) || unknown.any(|key| may_be_it(&key))
}

/// The plans of Services in doubt as the kernel holds them, by the names that the rows carry.
pub(super) fn remember(view: &View, tables: &Tables, here: &Here) -> BTreeMap<ObjectName, ServicePlan> {
    if view.is_all_known() {
        return BTreeMap::new();
    }
    let mut plans: BTreeMap<ObjectName, BTreeMap<_, _>> = BTreeMap::new();
    let Some(rows) = tables.observed_nft() else { return BTreeMap::new() };
    let none = Rows::new();
    let servers = tables.observed_servers().unwrap_or(&none);
    let balanced = |key: &FrontendKey| -> BTreeSet<_> {
        ipvs::servers(key, &here.addresses).flat_map(|server| ipvs::serving(servers, server)).collect()
    };
    for (key, frontend) in nftables::remembered(rows, balanced) {
        if is_in_doubt(view, &frontend.owner) {
            plans.entry(frontend.owner.clone()).or_default().insert(key, frontend);
        }
    }
    for (row, observed) in rows {
        if let Some((server, owner)) = record::server(row).zip(record::service(&observed.value))
            && servers.contains_key(&server)
            && is_in_doubt(view, &owner)
        {
            let (key, kind) = place(server, rows, here);
            let answering = || balanced(&key).into_iter().map(|to| nftables::backend(rows, to)).collect();
            let frontends = plans.entry(owner.clone()).or_default();
            let held = frontends.entry(key).or_insert_with(|| frontend(owner, (&key, kind), answering(), here));
            let (scheduler, affinity) = ipvs::options(servers, server);
            held.scheduler = scheduler;
            // The virtual server knows the networks of clients, the chains the port.
            held.affinity = match (held.affinity, affinity) {
                (Some(held), Some(found)) => Some(Affinity { prefix: found.prefix, ..held }),
                (held, found) => held.or(found),
            };
        }
    }
    plans.into_iter().map(|(name, frontends)| (name, ServicePlan::new(String::new(), frontends))).collect()
}

/// Where a virtual server stands, and for what.
fn place(server: VirtualServerKey, rows: &NftRows, here: &Here) -> (FrontendKey, frontend::Kind) {
    let key = ipvs::frontend(&server, &here.addresses);
    let kind = match key.place {
        Place::AnyNode(_) => frontend::Kind::NodePort,
        Place::Address(addr) if nftables::is_external(rows, addr) => frontend::Kind::LoadBalancer,
        Place::Address(_) => frontend::Kind::ClusterIp,
    };
    (key, kind)
}

/// What the kernel holds behind a virtual server that everybody is led to.
fn frontend(
    owner: ObjectName,
    (key, kind): (&FrontendKey, frontend::Kind),
    cluster: Arc<[Backend]>,
    here: &Here,
) -> Frontend {
    let choice = Choice { any: !cluster.is_empty(), cluster, local: Arc::default() };
    let by_policy = (Policy::Cluster, key.family());
    Frontend {
        kind,
        owner,
        affinity: None,
        scheduler: None,
        sources: Sources::Any,
        routes: match kind {
            frontend::Kind::ClusterIp => Routes::internal(by_policy, &choice, here),
            _ => Routes::external(by_policy, &choice, here),
        },
    }
}

/// The virtual addresses that the kernel's rows give to a Service, by the record of virtual servers or by the elements of nftables: without
/// external ones, and without those of the node, of which `own` are.
pub(super) fn recorded(tables: &Tables, name: &ObjectName, own: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let none = Rows::new();
    let rows = tables.observed_nft().unwrap_or(&none);
    let of = |(row, observed): (&nft_rows::RowKey, &Observed<nft_rows::Row>)| {
        record::service(&observed.value).filter(|owner| owner == name)?;
        let balanced = record::server(row).map(|server| server.addr);
        balanced.or_else(|| match nftables::frontend(row)?.place {
            Place::Address(addr) => Some(addr),
            Place::AnyNode(_) => None,
        })
    };
    let is_virtual = |addr: &IpAddr| !own.contains(addr) && !nftables::is_external(rows, *addr);
    rows.iter().filter_map(of).filter(is_virtual).collect()
}
