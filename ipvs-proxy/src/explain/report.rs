//! `Report`: what is said of each place and client, as values.
//!
//! Invariants. A client's fate is what the rows of the kernel do. A row that the plan needs and the kernel lacks is named, one that
//! stands in its way too.

mod clients;
mod rows;
mod service;

use std::net::IpAddr;

use serde::Serialize;

use self::clients::Client;
use self::rows::Standing;
use self::service::{Endpoint, Served};
use super::sites::Site;
use crate::facts::Facts;

pub(super) use self::rows::State;

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// The data path, in kube-proxy's words.
    pub(super) mode: &'static str,
    /// What to say of a daemon that does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) daemon: Option<String>,
    /// Why the objects cannot be read: only the kernel is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    /// The places.
    pub(super) places: Vec<Place>,
}

/// One place where clients connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
    /// Protocol, address and port.
    pub(super) place: String,
    /// The Service that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<Served>,
    /// What keeps it from being served, and what else is to be known.
    pub(super) notes: Vec<String>,
    /// Every endpoint of the port.
    pub(super) endpoints: Vec<Endpoint>,
    /// What becomes of each client.
    pub(super) clients: Vec<Client>,
    /// The rows that carry it.
    pub(super) rows: Vec<Standing>,
}

impl Report {
    /// What is said of these places; of a client at `from`, or of one of each class.
    pub(super) fn of(facts: &Facts, sites: &[Site], from: Option<IpAddr>) -> Self {
        Self {
            mode: facts.planned.plane.mode().name(),
            daemon: facts.silence.clone(),
            source: facts.lost.clone(),
            places: sites.iter().map(|site| place(facts, site, from)).collect(),
        }
    }

    /// Every client reaches an endpoint, by rows that are as planned.
    pub(super) fn is_well(&self) -> bool {
        let clients = |place: &Place| place.clients.iter().all(|client| client.reaches);
        let rows = |place: &Place| place.rows.iter().all(|row| matches!(row.state, State::InPlace | State::Draining));
        self.source.is_none() && self.places.iter().all(|place| clients(place) && rows(place))
    }
}

fn place(facts: &Facts, site: &Site, from: Option<IpAddr>) -> Place {
    let found = clients::all(facts, site, from);
    Place {
        place: format!("{} {}", site.protocol, site.at),
        service: Served::of(facts, site),
        notes: service::notes(facts, site),
        endpoints: service::endpoints(facts, site),
        rows: rows::all(facts, site, found.iter().map(|(_, walks)| walks)),
        clients: found.into_iter().map(|(client, _)| client).collect(),
    }
}
