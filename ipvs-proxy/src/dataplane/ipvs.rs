//! IPVS rows of a frontend.
//!
//! Every backend has weight 1: what spreads connections evenly is the scheduler.

use std::collections::BTreeMap;

use netstate::ipvs::{RealServer, RealServerKey, Row, RowKey, VirtualServerKey};

use crate::plan::FrontendPlan;

/// Weight of a backend that takes connections.
pub(crate) const SERVING: RealServer = RealServer { weight: 1 };

/// Weight of one that takes no new ones.
pub(crate) const DRAINING: RealServer = RealServer { weight: 0 };

/// The virtual server of a frontend and its real servers.
#[must_use]
pub(crate) fn rows(key: VirtualServerKey, frontend: &FrontendPlan) -> BTreeMap<RowKey, Row> {
    let real = |(addr, port): &(_, _)| RowKey::Real(RealServerKey { service: key, addr: *addr, port: *port });
    let reals = frontend.backends.iter().map(|backend| (real(backend), Row::Real(SERVING)));
    let virtual_server = (RowKey::Virtual(key), Row::Virtual(frontend.virtual_server.clone()));
    std::iter::once(virtual_server).chain(reals).collect()
}
