//! The rows that carry a place, and whether they stand in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netstate::nft::{Row, RowKey, Table};
use netstate::{IpFamily, Route, RouteKey};
use serde::Serialize;

use super::super::sites::Site;
use super::clients::Walks;
use crate::dataplane::nft::table_key;
use crate::dataplane::vip;
use crate::facts::{Facts, Server};

/// A row and whether it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    /// How it stands.
    pub(crate) state: State,
    /// Its key.
    pub(crate) row: String,
    /// Its value in the kernel; where it is missing, as it is planned.
    pub(crate) value: String,
}

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum State {
    /// As planned.
    InPlace,
    /// Its old connections go on, it gets no new one.
    Draining,
    /// Planned, and not in the kernel.
    Missing,
    /// In the kernel otherwise than planned.
    Different,
    /// In the kernel, and not planned.
    NotPlanned,
}

/// The rows that clients go through at `site`.
pub(super) fn all<'a>(facts: &Facts, site: &Site, walks: impl Iterator<Item = &'a Walks>) -> Vec<Standing> {
    let mut keys = BTreeSet::new();
    for walk in walks {
        keys.extend(walk.planned.rows.iter().chain(&walk.kernel.rows).cloned());
    }
    let mut found: Vec<Standing> = tables(facts, site).into_iter().collect();
    found.extend(keys.iter().filter_map(|key| {
        let (planned, held) = (facts.planned.nft.get(key), facts.kernel.nft.get(key));
        standing(facts, key.to_string(), planned.map(Row::to_string), held.map(Row::to_string))
    }));
    found.extend(servers(facts, site));
    found.extend(address(facts, site));
    found.extend(routes(facts, site));
    found
}

fn standing(facts: &Facts, row: String, planned: Option<String>, held: Option<String>) -> Option<Standing> {
    let known = facts.lost.is_none();
    let (state, value) = match (planned, held) {
        (None, None) => return None,
        (Some(planned), None) => (State::Missing, planned),
        (None, Some(held)) => (if known { State::NotPlanned } else { State::InPlace }, held),
        (Some(planned), Some(held)) => (if planned == held { State::InPlace } else { State::Different }, held),
    };
    Some(Standing { state, row, value })
}

/// The table itself, where it is not as it should be.
fn tables(facts: &Facts, site: &Site) -> Option<Standing> {
    let key = RowKey::Table(table_key(IpFamily::of(site.at.ip())));
    let row = key.to_string();
    match (facts.planned.nft.get(&key), facts.kernel.nft.get(&key)) {
        (Some(Row::Table(planned)), Some(Row::Table(held))) if planned != held => {
            Some(Standing { state: State::Different, row, value: differing(planned, held) })
        }
        (Some(_), None) => Some(Standing { state: State::Missing, row, value: String::new() }),
        _ => None,
    }
}

/// The parts of a table that are not as they should be.
fn differing(planned: &Table, held: &Table) -> String {
    let chains: BTreeSet<_> = planned.chains.keys().chain(held.chains.keys()).collect();
    let sets: BTreeSet<_> = planned.sets.keys().chain(held.sets.keys()).collect();
    let chains = chains.into_iter().filter(|name| planned.chains.get(*name) != held.chains.get(*name));
    let sets = sets.into_iter().filter(|name| planned.sets.get(*name) != held.sets.get(*name));
    let mut parts: Vec<String> = chains.map(|name| format!("chain {name}")).collect();
    parts.extend(sets.map(|name| format!("set {name}")));
    if held.dormant {
        parts.push("flag dormant: no packet meets it".to_owned());
    }
    parts.join(", ")
}

/// The virtual server and its real servers.
fn servers(facts: &Facts, site: &Site) -> Vec<Standing> {
    let key = site.server();
    let planned = facts.planned.ipvs.get(&key);
    let held = facts.kernel.servers.get(&key);
    let (said, standing_as) = (planned.map(|row| row.server.to_string()), held.map(|held| held.value.to_string()));
    let server = standing(facts, format!("virtual server {key}"), said, standing_as);
    let mut found: Vec<Standing> = server.into_iter().collect();
    let wanted = planned.into_iter().flat_map(|row| row.reals.iter().map(|(at, _)| at));
    let all: BTreeSet<SocketAddr> =
        wanted.chain(held.into_iter().flat_map(|held| held.reals.keys().copied())).collect();
    for at in all {
        let said = planned.and_then(|row| row.reals.get(at)).map(|real| real.to_string());
        found.extend(real(facts, at, said, held));
    }
    found
}

/// A real server, with the connections that the kernel counts.
fn real(facts: &Facts, at: SocketAddr, planned: Option<String>, held: Option<&Server>) -> Option<Standing> {
    let held = held.and_then(|held| held.reals.get(&at));
    let is_draining = planned.is_none() && held.is_some_and(|(real, _)| real.weight == 0);
    let mut standing = standing(facts, format!("real server {at}"), planned, held.map(|(real, _)| real.to_string()))?;
    if let Some((_, connections)) = held {
        standing.value += &format!(", {} active and {} other connections", connections.active, connections.inactive);
    }
    if is_draining {
        standing.state = State::Draining;
    }
    Some(standing)
}

/// The virtual address, which must be local where IPVS serves it.
fn address(facts: &Facts, site: &Site) -> Option<Standing> {
    let addr = site.at.ip();
    let planned = facts.planned.addresses.contains(&addr).then(|| "local".to_owned());
    let held = facts.kernel.has_virtual(addr).then(|| "local".to_owned());
    standing(facts, format!("address {addr} on {}", vip::LINK_NAME), planned, held)
}

/// The routes of whole networks that make the address local.
fn routes(facts: &Facts, site: &Site) -> Vec<Standing> {
    let (planned, held) = (facts.planned.plane.local_routes(), &facts.kernel.routes);
    let all: BTreeSet<_> = planned.keys().chain(held.keys()).filter(|key| key.dst.contains(site.at.ip())).collect();
    let value = |routes: &BTreeMap<RouteKey, Route>, key: &RouteKey| routes.get(key).map(Route::to_string);
    let of = |key: &RouteKey| standing(facts, key.to_string(), value(&planned, key), value(held, key));
    all.into_iter().filter_map(of).collect()
}
