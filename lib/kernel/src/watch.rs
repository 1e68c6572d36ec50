//! `Watch`: the kernel's own word that a table has changed.
//!
//! Events carry no rows: a loop that is woken lists its table again, so a lost event costs a listing and never a
//! change. An overrun of the receive buffer becomes [`Event::Resync`]. What does not concern the program is left out while it is
//! read ([`Interest`]); changes that our own sockets made are dropped in the kernel, by the port id that it writes into each
//! notification.

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub(crate) mod interest;
pub(crate) mod own;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use self::interest::Filter;
pub use self::interest::{Interest, WantsRoute};
use crate::error::KernelError;

/// Receive buffer of the monitor in bytes: our own bulk writes of 10,000 leases make 10,000 notifications of forwarding
/// entries, which do not say who wrote.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;

/// Datagrams that are read before others have their turn.
const TURN: usize = 256;

/// After so many reads in a row without an event the monitor rests for [`REST`]: thousands of our own forwarding entries are
/// announced one by one, and each announcement would wake this thread and interrupt the one that writes.
const IDLE_READS: u32 = 16;

/// How long notifications are left to wait then.
const REST: Duration = Duration::from_millis(1);

/// Reads further apart than this are not in a row.
const QUIET: Duration = Duration::from_millis(5);

/// RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE
/// (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Which table somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A link appeared, vanished or was set.
    Link,
    /// An address was removed, or one that cannot be read was.
    Address,
    /// An address was added or announced again: the end of its detection of duplicates, a renewed lifetime. It takes no row along.
    NewAddress,
    /// A link beside those of interest, or an address of one.
    OtherLink,
    /// A route was added, replaced or removed.
    Route,
    /// A default route of the main table was.
    DefaultRoute,
    /// A route beside those of interest was.
    OtherRoute,
    /// A rule that chooses a routing table was added or removed.
    Rule,
    /// A neighbour was set or removed.
    Neighbour,
    /// A forwarding entry was set or removed.
    Forwarding,
    /// Notifications were lost: every table may have changed.
    Resync,
}

/// A stream of changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Watch {
    /// `None` while it rests.
    monitor: Option<AsyncFd<Monitor>>,
    resting: Option<Resting>,
    pace: Pace,
    events: VecDeque<Event>,
}

/// A monitor that nobody waits for, and until when.
#[derive(Debug)]
struct Resting {
    monitor: Monitor,
    until: Instant,
}

/// Whether notifications come one by one that concern nobody here.
#[derive(Debug, Default)]
struct Pace {
    /// Reads in a row without an event.
    idle: u32,
    last: Option<Instant>,
}

impl Pace {
    /// Notes a read and returns whether the monitor shall rest.
    fn rests(&mut self, events: usize, now: Instant) -> bool {
        let before = self.last.replace(now);
        let quiet = before.is_none_or(|before| now.duration_since(before) > QUIET);
        self.idle = if events > 0 || quiet { 0 } else { self.idle.saturating_add(1) };
        self.idle >= IDLE_READS
    }
}

#[derive(Debug)]
struct Monitor {
    socket: netlink_sys::Socket,
    filter: Filter,
    buffer: Vec<u8>,
    /// The kernel has dropped notifications, and drops more until it has got rid of those that wait.
    lost: bool,
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Monitor {
    fn open(interest: Interest) -> Result<Self, KernelError> {
        let error = |call: &'static str| move |source| KernelError::io("open", "rtnetlink monitor", call, source);
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(error("socket"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(error("bind"))?;
        // Where the kernel refuses, what is our own is left out when it is read.
        let _ = own::drop_own(&socket, &interest.own);
        for group in GROUPS {
            socket.add_membership(group).map_err(error("NETLINK_ADD_MEMBERSHIP"))?;
        }
        socket.set_non_blocking(true).map_err(error("O_NONBLOCK"))?;
        // Beyond the system's limit if we may; an overrun is survived either way.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        // After the groups, so that a link that comes meanwhile is reported.
        Ok(Self { socket, filter: Filter::new(interest), buffer: vec![0; 64 * 1024], lost: false })
    }

    /// What has happened since the last call; the second value says whether there may be more. Never blocks.
    fn read(&mut self) -> Result<(BTreeSet<Event>, bool), KernelError> {
        let mut events = BTreeSet::new();
        for _ in 0..TURN {
            let mut window = self.buffer.as_mut_slice();
            match self.socket.recv(&mut window, 0) {
                Ok(size) => self.filter.read(self.buffer.get(..size).unwrap_or_default(), &mut events),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::mem::take(&mut self.lost) {
                        self.filter.start_over();
                        events.insert(Event::Resync);
                    }
                    return Ok((events, false));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.lost = true,
                Err(source) => return Err(KernelError::io("read", "rtnetlink monitor", "recv", source)),
            }
        }
        Ok((events, true))
    }
}

impl Watch {
    /// Starts watching for what is of interest. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(interest: Interest) -> Result<Self, KernelError> {
        let monitor = Some(follow(Monitor::open(interest)?)?);
        Ok(Self { monitor, resting: None, pace: Pace::default(), events: VecDeque::new() })
    }

    /// The next change; dropping the future loses none.
    ///
    /// # Errors
    /// When the socket fails; the watch is of no use then.
    pub async fn next(&mut self) -> Result<Event, KernelError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Some(resting) = &self.resting {
                sleep_until(resting.until).await;
                self.monitor = self.resting.take().map(|resting| follow(resting.monitor)).transpose()?;
            }
            let failed = |error| KernelError::io("wait for", "rtnetlink monitor", "epoll_wait", error);
            let monitor = self.monitor.as_mut().ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))?;
            let mut ready = monitor.readable_mut().await.map_err(failed)?;
            let (events, more) = ready.get_inner_mut().read()?;
            if !more {
                ready.clear_ready();
            }
            let now = Instant::now();
            if self.pace.rests(events.len(), now) && !more {
                let monitor = self.monitor.take().map(AsyncFd::into_inner);
                self.resting = monitor.map(|monitor| Resting { monitor, until: now + REST });
            }
            self.events.extend(events);
            if more && self.events.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Has the runtime wait for what comes to `monitor`, which may have come already.
fn follow(monitor: Monitor) -> Result<AsyncFd<Monitor>, KernelError> {
    // SAFETY: the monitor owns its descriptor and neither replaces nor closes it while it lives.
    #[allow(unsafe_code)]
    let fd = unsafe { AsyncFd::register(monitor) };
    fd.map_err(|error| KernelError::io("open", "rtnetlink monitor", "epoll_ctl", error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitor_rests_only_between_notifications_that_come_one_by_one_and_concern_nobody() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |n: u32| start + REST * n;
        let rested: Vec<u32> = (0..=IDLE_READS).filter(|n| pace.rests(0, at(*n))).collect();
        assert_eq!(rested, [IDLE_READS], "the first read follows none");
        assert!(pace.rests(0, at(IDLE_READS + 1)), "as long as they come");
        assert!(!pace.rests(1, at(IDLE_READS + 2)), "one that concerns somebody");
        assert!((0..IDLE_READS - 1).all(|n| !pace.rests(0, at(IDLE_READS + 3 + n))));
        assert!(!pace.rests(0, at(1000)), "after a while without any");
    }
}
