//! netd and ipvs-proxy, by the pages that they serve.
//!
//! Invariant: a page that is on loopback is asked only on its own host; that it is refused elsewhere says nothing.

use cluster::problem::elided;

use super::conversation::Peer;
use super::row::{Place, Row, State};
use crate::facts::is_own;

const HEALTH: &str = "GET /healthz HTTP/1.0\r\nHost: netd\r\n\r\n";

/// Asks ipvs-proxy, whose page of health everybody may ask.
pub(super) fn proxy(peer: &Peer, place: Place) -> Row {
    match peer.ask(HEALTH) {
        Ok(answer) => health(place, answer.code, &answer.body),
        Err(reason) => Row::new(place, State::Failed, reason),
    }
}

/// Asks netd, whose page is on loopback.
pub(super) fn netd(peer: &Peer, place: Place) -> Row {
    let mut own = peer.clone();
    if is_own(peer.at.ip()) {
        own.at.set_ip(if peer.at.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    match own.ask(HEALTH) {
        Ok(answer) => health(place, answer.code, &answer.body),
        Err(reason) if own.at == peer.at => {
            Row::new(place, State::Unknown, format!("{reason}, and it serves on loopback alone: `netd status` there"))
        }
        Err(reason) => Row::new(place, State::Failed, reason),
    }
}

/// The row of a daemon that has answered.
pub(super) fn health(place: Place, code: u16, body: &str) -> Row {
    let first = elided(body.lines().next().unwrap_or_default().to_owned());
    match code {
        200 => Row::new(place, State::Ok, "healthy"),
        503 => Row::new(place, State::Failed, format!("not healthy: {first}")),
        _ => Row::new(place, State::Failed, format!("it answers {code}: {first}")),
    }
}
