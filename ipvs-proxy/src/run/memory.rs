//! What the kernel remembers of Services that nobody can read.
//!
//! A Service that was served, became malformed, and is found malformed by a new start of this program has no earlier value
//! here. The kernel has: the record of our virtual servers carries the Service's name, and so do the elements of the nftables data
//! path. Invariant: such a Service goes on
//! exactly as it stands in the kernel, until its objects can be read or are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};
use netstate::{IpFamily, nft as nft_rows};
use reconcile::{Observed, Rows};

use super::tables::Tables;
use crate::dataplane::ipvs::{self, reals_of};
use crate::dataplane::nft;
use crate::dataplane::{nftables, record};
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::{Policy, Sources};
use crate::plan::frontend;
use crate::plan::here::Here;
use crate::plan::route::Routes;
use crate::plan::select::{Backend, Choice, Locality};
use crate::plan::{Frontend, ServicePlan};
use crate::source::view::View;

/// True while nobody can say what a Service of this name should be: it, or what may be its only slice, is malformed and has
/// no earlier value, or a file cannot be read that may define it.
pub(super) fn is_in_doubt(view: &View, name: &ObjectName) -> bool {
    if view.service(name).is_some() && view.slices(name).next().is_some() {
        return false;
    }
    let may_be_it = |key: &ObjectKey| match key.kind {
        Kind::Service => key.name == *name,
        Kind::EndpointSlice => key.name.namespace() == name.namespace() && view.service(name).is_some(),
    };
    let unknown = view.malformed().filter(|(_, _, kept)| !kept);
    let mut unknown = unknown.filter_map(|(key, _, _)| ObjectKey::from_etcd(&key));
    view.unreadable().next().is_some() || unknown.any(|key| may_be_it(&key))
}

/// The plans of Services in doubt as the kernel holds them, by the names that the rows carry.
pub(super) fn remember(view: &View, tables: &Tables, here: &Here) -> BTreeMap<ObjectName, ServicePlan> {
    let mut plans: BTreeMap<ObjectName, BTreeMap<_, _>> = BTreeMap::new();
    let Some(rows) = tables.observed_nft() else { return BTreeMap::new() };
    if !tables.has_servers() {
        for (key, frontend) in nftables::remembered(rows).filter(|(_, frontend)| is_in_doubt(view, &frontend.owner)) {
            plans.entry(frontend.owner.clone()).or_default().insert(key, frontend);
        }
    }
    let none = Rows::new();
    let servers = tables.observed_servers().unwrap_or(&none);
    for (row, observed) in rows {
        if let Some((server, owner)) = record::server(row).zip(record::service(&observed.value))
            && is_in_doubt(view, &owner)
            && servers.contains_key(&RowKey::Virtual(server))
        {
            let frontends = plans.entry(owner.clone()).or_default();
            frontends.insert(ipvs::frontend(&server), frontend(owner, held_behind(server, rows, servers), here));
        }
    }
    plans.into_iter().map(|(name, frontends)| (name, ServicePlan::new(String::new(), frontends))).collect()
}

/// What the kernel holds behind a virtual server.
fn frontend(owner: ObjectName, cluster: Arc<[Backend]>, here: &Here) -> Frontend {
    let choice = Choice { any: !cluster.is_empty(), cluster, local: Arc::default() };
    Frontend {
        kind: frontend::Kind::ClusterIp,
        owner,
        affinity: None,
        scheduler: None,
        sources: Sources::Any,
        routes: Routes::internal((Policy::Cluster, IpFamily::V4), &choice, here),
    }
}

/// The addresses that the kernel's record gives to a Service.
pub(super) fn recorded(tables: &Tables, name: &ObjectName) -> BTreeSet<IpAddr> {
    let of = |(row, observed): (&nft_rows::RowKey, &Observed<nft_rows::Row>)| {
        let owner = record::service(&observed.value)?;
        record::server(row).filter(|_| owner == *name).map(|server| server.addr)
    };
    tables.observed_nft().into_iter().flatten().filter_map(of).collect()
}

/// The endpoints that the kernel holds behind a virtual server.
fn held_behind(
    server: VirtualServerKey,
    rows: &Rows<nft_rows::RowKey, nft_rows::Row>,
    servers: &Rows<RowKey, Row>,
) -> Arc<[Backend]> {
    let backend = |real: RealServerKey| {
        let here = rows.contains_key(&nft::hairpin(real.addr).0);
        let locality = if here { Locality::Unknown } else { Locality::Elsewhere };
        Backend { addr: real.addr, port: real.port, weight: 1, locality }
    };
    reals_of(servers, server).map(backend).collect()
}
