//! `Watch`: the kernel's own word that a table has changed.
//!
//! Events carry no rows: a loop that is woken lists its table again, so a lost event costs a listing and never a
//! change. An overrun of the receive buffer becomes [`Event::Resync`]. Changes that one of our own sockets made are
//! left out, by the port id that the kernel writes into each notification.

use std::collections::BTreeSet;

use futures_util::StreamExt;
use netlink_sys::{AsyncSocket, TokioSocket};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use crate::error::KernelError;

/// Receive buffer of the monitor in bytes: our own bulk writes of 10,000 leases make 30,000 notifications.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;

/// Which table somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A link appeared, vanished or was set.
    Link,
    /// An address was added or removed.
    Address,
    /// A route was added, replaced or removed.
    Route,
    /// A default route was, of whichever table.
    DefaultRoute,
    /// A neighbour or a forwarding entry was set or removed.
    Neighbour,
    /// Notifications were lost: every table may have changed.
    Resync,
}

/// A stream of changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watch {
    events: UnboundedReceiver<Event>,
    /// The conversation, which ends with this.
    _tasks: JoinSet<()>,
}

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

impl Watch {
    /// Starts watching; `own` are the port ids of our writing sockets. Must be called on a tokio runtime, which
    /// drives the monitor from then on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(own: BTreeSet<u32>) -> Result<Self, KernelError> {
        let (mut connection, _, mut messages) = new_multicast_connection(&GROUPS)
            .map_err(|source| KernelError::io("open", "rtnetlink monitor", "socket", source))?;
        enlarge(connection.socket_mut());
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let (sender, events) = unbounded_channel();
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if let Some(event) = classify(&message, &own)
                    && sender.send(event).is_err()
                {
                    break;
                }
            }
        });
        Ok(Self { events, _tasks: tasks })
    }

    /// The next change; `None` when the monitor has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next change if one is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

/// Asks for a large receive buffer, beyond the system's limit if we may; an overrun is survived either way.
fn enlarge(socket: &mut TokioSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: the descriptor is owned by `socket`, which outlives the borrow.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(socket.socket_ref().as_raw_fd()) };
    if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
}

fn classify(message: &NetlinkMessage<RouteNetlinkMessage>, own: &BTreeSet<u32>) -> Option<Event> {
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        return matches!(message.payload, NetlinkPayload::Overrun(_)).then_some(Event::Resync);
    };
    if own.contains(&message.header.port_number) {
        return None;
    }
    match inner {
        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Some(Event::Link),
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => Some(Event::Address),
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            Some(if route.header.destination_prefix_length == 0 { Event::DefaultRoute } else { Event::Route })
        }
        RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_) => Some(Event::Neighbour),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::address::AddressMessage;
    use rtnetlink::packet_route::link::LinkMessage;
    use rtnetlink::packet_route::neighbour::NeighbourMessage;
    use rtnetlink::packet_route::route::RouteMessage;
    use rtnetlink::packet_route::rule::RuleMessage;

    fn from(port: u32, message: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut header = NetlinkHeader::default();
        header.port_number = port;
        NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message))
    }

    fn to_a_network() -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.destination_prefix_length = 24;
        message
    }

    #[test]
    fn each_table_has_its_event_for_what_comes_and_what_goes() {
        use RouteNetlinkMessage as M;
        let own = BTreeSet::from([7]);
        for (message, event) in [
            (M::NewLink(LinkMessage::default()), Some(Event::Link)),
            (M::DelLink(LinkMessage::default()), Some(Event::Link)),
            (M::NewAddress(AddressMessage::default()), Some(Event::Address)),
            (M::DelAddress(AddressMessage::default()), Some(Event::Address)),
            (M::NewRoute(RouteMessage::default()), Some(Event::DefaultRoute)),
            (M::NewRoute(to_a_network()), Some(Event::Route)),
            (M::DelRoute(to_a_network()), Some(Event::Route)),
            (M::NewNeighbour(NeighbourMessage::default()), Some(Event::Neighbour)),
            (M::DelNeighbour(NeighbourMessage::default()), Some(Event::Neighbour)),
            (M::NewRule(RuleMessage::default()), None),
        ] {
            assert_eq!(classify(&from(8, message.clone()), &own), event, "{message:?}");
            assert_eq!(classify(&from(7, message), &own), None, "an own change");
        }
    }

    #[test]
    fn overrun_may_have_lost_anything() {
        let overrun = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(Vec::new()));
        assert_eq!(classify(&overrun, &BTreeSet::new()), Some(Event::Resync));
        let done = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Noop);
        assert_eq!(classify(&done, &BTreeSet::new()), None);
    }
}
