//! Answers to the probes of other nodes' `netd doctor` and `netd trace`.
//!
//! Invariants: it serves at the node's own addresses and in its tunnels, nowhere else; it answers requests of its own form,
//! with a packet that is no longer, and a limited number of them a second, whoever asks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netstate::Prefix;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::doctor::packet::{self, Answer};
use crate::plan::LocalNode;

/// Most answers in a second at one address.
const MOST: u32 = 200;

/// Pause before an address that was refused is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// The sockets at which probes are answered.
pub(super) struct Responder {
    port: u16,
    sockets: BTreeMap<IpAddr, (Option<Prefix>, JoinHandle<()>)>,
}

impl Responder {
    /// Serves nowhere yet; with port 0 never.
    #[must_use]
    pub(super) const fn new(port: u16) -> Self {
        Self { port, sockets: BTreeMap::new() }
    }

    /// Serves at the addresses of `local`.
    pub(super) fn serve(&mut self, local: &LocalNode) {
        let mut wanted = BTreeMap::new();
        for (_, place) in local.places.present().filter(|_| self.port != 0) {
            // Before there is a lease the subnet is the node's own address.
            let subnet = Some(place.subnet).filter(|subnet| *subnet != Prefix::host(place.address));
            wanted.insert(place.address, subnet);
            wanted.extend(subnet.map(|subnet| (subnet.addr(), Some(subnet))));
        }
        self.sockets.retain(|address, (subnet, task)| {
            let stays = wanted.get(address) == Some(subnet);
            if !stays {
                task.abort();
            }
            stays
        });
        for (address, subnet) in wanted {
            let at = SocketAddr::new(address, self.port);
            self.sockets.entry(address).or_insert_with(|| (subnet, tokio::spawn(answer(at, subnet))));
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.sockets.values().for_each(|(_, task)| task.abort());
    }
}

async fn answer(at: SocketAddr, subnet: Option<Prefix>) {
    loop {
        match kernel::probe::listener(at).and_then(UdpSocket::from_std) {
            Ok(socket) => answer_at(&socket, subnet).await,
            Err(error) => tracing::debug!(%at, %error, "probes are not answered here"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Answers until the socket fails.
async fn answer_at(socket: &UdpSocket, subnet: Option<Prefix>) {
    let mut limit = Limit { since: Instant::now(), count: 0 };
    let mut buffer = [0; packet::LENGTH];
    loop {
        // What is longer is cut off in the buffer: only its beginning says anything.
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // What an earlier answer met.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        if let Some(number) = buffer.get(..length).and_then(packet::asked).filter(|_| limit.allows(Instant::now())) {
            let answer = Answer { number, clock: packet::now(), subnet };
            let _ = socket.try_send_to(&packet::render(&answer), from);
        }
    }
}

/// How many answers were given in the second that began at `since`.
struct Limit {
    since: Instant,
    count: u32,
}

impl Limit {
    fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_limited_in_each_second() {
        let since = Instant::now();
        let mut limit = Limit { since, count: 0 };
        let mut given = |after: u64| (0..1000).filter(|_| limit.allows(since + Duration::from_millis(after))).count();
        assert_eq!((given(0), given(999), given(1000), given(1500), given(7000)), (200, 0, 200, 0, 200));
    }
}
