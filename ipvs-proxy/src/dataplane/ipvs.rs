//! IPVS rows of a frontend: a virtual server and its real servers.
//!
//! Invariant: a frontend has its virtual server as long as it is served, whoever its clients are led to: the address depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use netstate::IpFamily;
use netstate::ipvs::{RealServer, RealServerKey, Row, RowKey, VirtualServer, VirtualServerKey};

use crate::plan::frontend::Place;
use crate::plan::route::Answer;
use crate::plan::{Frontend, FrontendKey};

/// A real server that takes no new connections and keeps its old ones.
pub(crate) const DRAINING: RealServer = RealServer::new(0);

/// The virtual server of a frontend; `None` for one without an address of its own.
#[must_use]
pub(crate) const fn server(key: &FrontendKey) -> Option<VirtualServerKey> {
    match key.place {
        Place::Address(addr) => Some(VirtualServerKey { protocol: key.protocol, addr, port: key.port }),
        Place::AnyNode(_) => None,
    }
}

/// The frontend of a virtual server.
#[must_use]
pub(crate) const fn frontend(server: &VirtualServerKey) -> FrontendKey {
    FrontendKey { protocol: server.protocol, place: Place::Address(server.addr), port: server.port }
}

/// What a virtual server answers, which knows one class of clients only: what everybody else is led to, or where that is nobody the
/// first that Pods or this node reach.
#[must_use]
pub(super) fn answer(frontend: &Frontend) -> &Answer {
    let routes = [&frontend.routes.outside, &frontend.routes.pod, &frontend.routes.node].map(|route| &route.answer);
    let answered = routes.into_iter().find(|answer| matches!(answer, Answer::Backends(_)));
    answered.unwrap_or(&frontend.routes.outside.answer)
}

/// The virtual server with its real servers.
#[must_use]
pub(super) fn rows(server: VirtualServerKey, frontend: &Frontend, scheduler: &str) -> BTreeMap<RowKey, Row> {
    let virtual_server = VirtualServer::new(scheduler.to_owned(), None);
    let reals = answer(frontend).backends().iter().map(|backend| {
        let key = RealServerKey { service: server, addr: backend.addr, port: backend.port };
        (RowKey::Real(key), Row::Real(RealServer::new(backend.weight)))
    });
    std::iter::once((RowKey::Virtual(server), Row::Virtual(virtual_server))).chain(reals).collect()
}

/// Who takes connections at a frontend, by the rows of the kernel.
pub(crate) fn endpoints<V>(rows: &BTreeMap<RowKey, V>, frontend: &FrontendKey) -> BTreeSet<SocketAddr> {
    let reals = server(frontend).into_iter().flat_map(|server| reals_of(rows, server));
    reals.map(|real| SocketAddr::new(real.addr, real.port)).collect()
}

/// The real servers of `server` among `rows`.
pub(crate) fn reals_of<V>(rows: &BTreeMap<RowKey, V>, server: VirtualServerKey) -> impl Iterator<Item = RealServerKey> {
    // The lowest key that a real server of this virtual server can have.
    let first = RealServerKey { service: server, addr: IpFamily::of(server.addr).unspecified(), port: 0 };
    rows.range(RowKey::Real(first)..).map_while(move |(key, _)| match key {
        RowKey::Real(real) if real.service == server => Some(*real),
        _ => None,
    })
}
