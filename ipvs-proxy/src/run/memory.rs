//! What the kernel remembers of Services that nobody can read.
//!
//! A Service that was served, became malformed, and is found malformed by a new start of this program has no earlier value
//! here. The kernel has: the record of our virtual servers carries the Service's name. Invariant: such a Service goes on
//! exactly as it stands in the kernel, until its objects can be read or are gone.

use std::collections::BTreeMap;

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};
use netstate::nft as nft_rows;
use reconcile::Rows;

use super::rotation::reals_of;
use super::tables::Tables;
use crate::dataplane::ipvs;
use crate::dataplane::table as nft;
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::Policy;
use crate::plan::frontend::{self, Masquerade, Owner};
use crate::plan::select::{Backend, Locality};
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
        Kind::EndpointSlice => key.name.namespace == name.namespace && view.service(name).is_some(),
    };
    let unknown = view.malformed().filter(|(_, _, kept)| !kept);
    let mut unknown = unknown.filter_map(|(key, _, _)| ObjectKey::from_etcd(key));
    !view.unreadable().is_empty() || unknown.any(|key| may_be_it(&key))
}

/// The plans of Services in doubt as the kernel holds them, by the names that the record carries.
pub(super) fn remember(view: &View, tables: &Tables) -> BTreeMap<ObjectName, ServicePlan> {
    let mut plans: BTreeMap<ObjectName, ServicePlan> = BTreeMap::new();
    let (Some(record), Some(servers)) = (tables.observed_nft(), tables.observed_servers()) else { return plans };
    for (row, observed) in record {
        if let Some((server, owner)) = recorded(row, &observed.value)
            && is_in_doubt(view, &owner.service)
            && servers.contains_key(&RowKey::Virtual(server))
        {
            let frontends = &mut plans.entry(owner.service.clone()).or_default().frontends;
            frontends.insert(ipvs::frontend(&server), frontend(server, owner, record, servers));
        }
    }
    plans
}

/// What the kernel holds behind a virtual server.
fn frontend(
    server: VirtualServerKey,
    owner: Owner,
    record: &Rows<nft_rows::RowKey, nft_rows::Row>,
    servers: &Rows<RowKey, Row>,
) -> Frontend {
    let backend = |real: RealServerKey| {
        let here = record.contains_key(&nft::hairpin(real.addr).0);
        let locality = if here { Locality::Unknown } else { Locality::Elsewhere };
        Backend { addr: real.addr, port: real.port, weight: 1, locality }
    };
    Frontend {
        kind: frontend::Kind::ClusterIp,
        owner,
        affinity: None,
        policy: Policy::Cluster,
        masquerade: Masquerade::FromOutside,
        sources: Vec::new(),
        backends: reals_of(servers, server).map(backend).collect(),
    }
}

/// The virtual server of a recorded element, and whose it is.
fn recorded(row: &nft_rows::RowKey, value: &nft_rows::Row) -> Option<(VirtualServerKey, Owner)> {
    let server = nft::recorded(row)?;
    let nft_rows::Row::Element(nft_rows::Element { comment: Some(comment), .. }) = value else { return None };
    let (namespace, rest) = comment.split_once('/')?;
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some((server, Owner { service: ObjectName::new(namespace, name), port: port.to_owned() }))
}
