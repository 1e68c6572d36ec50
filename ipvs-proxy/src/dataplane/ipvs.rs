//! IPVS row of a frontend: a virtual server with its real servers.
//!
//! Invariant: a frontend has its virtual server as long as it is served, whoever its clients are led to: the address depends on it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netstate::IpFamily;
use netstate::ipvs::{Persistence, RealServer, Row, Scheduler, VirtualServer, VirtualServerKey};
use reconcile::Rows;

use crate::plan::frontend::{Affinity, Place};
use crate::plan::route::Answer;
use crate::plan::select::Backend;
use crate::plan::{Frontend, FrontendKey};

/// A real server that takes no new connections and keeps its old ones.
pub(crate) const DRAINING: RealServer = RealServer::new(0);

/// The frontend of a virtual server: at an address of the node, of which `own` are, it is a node port's.
#[must_use]
pub(crate) fn frontend(server: &VirtualServerKey, own: &BTreeSet<IpAddr>) -> FrontendKey {
    let VirtualServerKey { protocol, addr, port } = *server;
    let place = if own.contains(&addr) { Place::AnyNode(IpFamily::of(addr)) } else { Place::Address(addr) };
    FrontendKey { protocol, place, port }
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
pub(super) fn row(frontend: &Frontend, scheduler: &Scheduler) -> Row {
    let scheduler = frontend.scheduler.as_deref().unwrap_or(scheduler);
    let persistence =
        frontend.affinity.map(|affinity| Persistence { seconds: affinity.seconds, prefix: affinity.prefix });
    let real = |backend: &Backend| (SocketAddr::new(backend.addr, backend.port), RealServer::new(backend.weight));
    let reals = answer(frontend).backends().iter().map(real).collect();
    Row::from(VirtualServer::new(scheduler.clone(), persistence)).with(reals)
}

/// The scheduler of a virtual server and how long its clients stay, by the rows of the kernel.
pub(crate) fn options(
    rows: &Rows<VirtualServerKey, Row>,
    key: VirtualServerKey,
) -> (Option<Arc<Scheduler>>, Option<Affinity>) {
    let Some(found) = rows.get(&key).map(|row| &row.value.server) else { return (None, None) };
    let affinity =
        found.persistence.map(|Persistence { seconds, prefix }| Affinity { seconds, port: key.port, prefix });
    (Some(Arc::new(found.scheduler.clone())), affinity)
}

/// The virtual servers of a frontend; that of a node port has one at each address of `node`.
pub(crate) fn servers(frontend: &FrontendKey, node: &BTreeSet<IpAddr>) -> impl Iterator<Item = VirtualServerKey> {
    let FrontendKey { protocol, place, port } = *frontend;
    let (at, family) = match place {
        Place::Address(addr) => (Some(addr), None),
        Place::AnyNode(family) => (None, Some(family)),
    };
    let of_node = node.iter().copied().filter(move |addr| Some(IpFamily::of(*addr)) == family);
    at.into_iter().chain(of_node).map(move |addr| VirtualServerKey { protocol, addr, port })
}

/// Who takes new connections at a virtual server, by the rows of the kernel.
pub(crate) fn serving(rows: &Rows<VirtualServerKey, Row>, key: VirtualServerKey) -> BTreeSet<SocketAddr> {
    let reals = rows.get(&key).into_iter().flat_map(|row| row.value.reals.iter());
    reals.filter(|(_, real)| real.weight > 0).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use reconcile::{Observed, Owner};

    use super::*;

    #[test]
    fn who_drains_takes_no_new_connections() {
        let key = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 };
        let reals = [(2, DRAINING), (3, RealServer::new(1))];
        let at = |last: u8| SocketAddr::from(([172, 7, 21, last], 8080));
        let server = VirtualServer::new("rr".to_owned(), None);
        let value = Row::from(server).with(reals.map(|(last, real)| (at(last), real)).into_iter().collect());
        let rows = Rows::from([(key, Observed { value, owner: Owner::Ours })]);
        assert_eq!(serving(&rows, key), BTreeSet::from([at(3)]));
        assert_eq!(serving(&rows, VirtualServerKey { port: 81, ..key }), BTreeSet::new());
    }
}
