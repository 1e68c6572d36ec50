//! What the kernel remembers of Services that nobody can read.
//!
//! A Service that was served, became malformed, and is found malformed by a new start of this program has no earlier value
//! here. The kernel has: the record of our virtual servers carries the Service's name. Invariant: such a Service goes on
//! exactly as it stands in the kernel, until its objects can be read or are gone.

use std::collections::{BTreeMap, BTreeSet};

use netstate::ipvs::{Row, RowKey, VirtualServerKey};
use netstate::nft as nft_rows;
use reconcile::Rows;

use super::rotation::reals_of;
use super::tables::Tables;
use crate::dataplane::table as nft;
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::plan::{Desired, FrontendPlan, ServicePlan};
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

/// Puts Services in doubt into `desired` as the kernel holds them, by the names that the record carries; answers which.
pub(super) fn remember(view: &View, desired: &mut Desired, tables: &mut Tables) -> BTreeSet<ObjectName> {
    let (Some(record), Some(servers)) = (tables.observed_nft(), tables.observed_servers()) else {
        return BTreeSet::new();
    };
    let mut plans: BTreeMap<ObjectName, ServicePlan> = BTreeMap::new();
    for (row, observed) in record {
        if let Some((name, service, comment)) = recorded(row, &observed.value)
            && is_in_doubt(view, &name)
            && let Some(frontend) = frontend(service, comment, record, servers)
        {
            plans.entry(name).or_default().frontends.insert(service, frontend);
        }
    }
    let names = plans.keys().cloned().collect();
    for (name, plan) in plans {
        tracing::warn!(service = %name, "Service cannot be read and goes on as the kernel remembers it");
        let changes = desired.set(&name, Some(plan));
        tables.want(changes);
    }
    names
}

/// What the kernel holds behind a virtual server; `None` when it does not hold it.
fn frontend(
    service: VirtualServerKey,
    comment: &str,
    record: &Rows<nft_rows::RowKey, nft_rows::Row>,
    servers: &Rows<RowKey, Row>,
) -> Option<FrontendPlan> {
    let Row::Virtual(virtual_server) = servers.get(&RowKey::Virtual(service))?.value.clone() else { return None };
    let reals: Vec<_> = reals_of(servers, service).collect();
    let addresses = reals.iter().map(|real| real.addr);
    Some(FrontendPlan {
        comment: comment.to_owned(),
        virtual_server,
        backends: reals.iter().map(|real| (real.addr, real.port)).collect(),
        maybe_local: addresses.filter(|addr| record.contains_key(&nft::hairpin(*addr).0)).collect(),
    })
}

/// The Service, the virtual server and the text of a recorded element.
fn recorded<'a>(row: &nft_rows::RowKey, value: &'a nft_rows::Row) -> Option<(ObjectName, VirtualServerKey, &'a str)> {
    let service = nft::recorded(row)?;
    let nft_rows::Row::Element(nft_rows::Element { comment: Some(comment), .. }) = value else { return None };
    let (namespace, rest) = comment.split_once('/')?;
    let name = rest.split(':').next().unwrap_or(rest);
    Some((ObjectName::new(namespace, name), service, comment))
}
