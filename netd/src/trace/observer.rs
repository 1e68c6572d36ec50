//! What one node sees of a flow while a probe is under way.
//!
//! Invariant: the table in nftables lives as long as this value; what cannot be traced is said, and stops nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use kernel::nft::Nft;
use kernel::nft::trace::{Event, Fate, Flow, Trace};
use kernel::{KernelError, Rtnl};
use netstate::{LinkKind, Protocol};

use super::seen::{Seen, Side, seen};

/// Follows one flow on this node.
pub(crate) struct Observer {
    trace: Trace,
    events: Vec<Event>,
    links: BTreeMap<u32, String>,
}

impl Observer {
    /// Starts to follow what `source` sends and gets.
    ///
    /// # Errors
    /// When the kernel cannot be read, or has no nftables.
    pub(crate) fn start(source: SocketAddr, protocol: Protocol) -> Result<Self, KernelError> {
        let links = Rtnl::open()?.links()?;
        let mut vxlan: Vec<u16> = Vec::new();
        for link in &links {
            if let LinkKind::Vxlan(options) = &link.link.kind
                && !vxlan.contains(&options.port)
            {
                vxlan.push(options.port);
            }
        }
        let links = links.into_iter().map(|link| (link.index, link.name.to_string())).collect();
        Ok(Self { trace: Trace::start(Flow { source, protocol, vxlan })?, events: Vec::new(), links })
    }

    /// Collects until `deadline`, or until something was dropped.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn collect(&mut self, deadline: Instant) -> Result<(), KernelError> {
        let dropped = |events: &[Event]| events.iter().any(|event| matches!(event.fate, Fate::Dropped { .. }));
        self.trace.collect(&mut self.events, deadline, dropped)
    }

    /// What was seen of a probe between `ends`.
    #[must_use]
    pub(crate) fn seen(&self, ends: (SocketAddr, SocketAddr), side: Side) -> Seen {
        seen(&self.events, ends, side, &self.links, describe)
    }
}

/// Names the rule or policy that dropped a packet.
fn describe(fate: &Fate) -> String {
    let Fate::Dropped { table, chain, rule } = fate else { return String::new() };
    let named = Nft::open().and_then(|mut nft| nft.describe(table, chain, *rule));
    // A rule that is gone meanwhile is still known by its place.
    named.unwrap_or_else(|_| format!("a rule of {table} {chain}"))
}
