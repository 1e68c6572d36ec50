//! Answers to the probes of other nodes' `netd doctor` and `netd trace`.
//!
//! Invariants: it serves at the node's own addresses and in its tunnels, nowhere else; it answers requests of its own form,
//! with a packet that is no longer, and a limited number of them a second, whoever asks. Only a node makes it watch.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::liveness::{Heartbeat, Liveness, Progress};
use netstate::{IfName, Prefix};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::doctor::packet::{self, Answer};
use crate::plan::LocalNode;
use crate::trace::far::{self, Question};
use crate::trace::serve::{Turn, Watching};

/// Most answers in a second at one address.
const MOST: u32 = 200;

/// Pause before an address that was refused is tried again: it may be that of a socket that is just being closed.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest delay of what it does by itself.
const LIMIT: Duration = Duration::from_secs(30);

/// The sockets at which probes are answered.
pub(super) struct Responder {
    port: u16,
    liveness: Liveness,
    watching: Watching,
    sockets: BTreeMap<IpAddr, Socket>,
}

/// One socket, and the loop behind it.
struct Socket {
    /// The VRF that probes come from.
    vrf: Option<IfName>,
    /// What it answers: the own subnet, which comes after the address and may change while it serves.
    subnet: watch::Sender<Option<Prefix>>,
    task: JoinHandle<()>,
    progress: Progress,
}

impl Responder {
    /// Serves nowhere yet; with port 0 never.
    #[must_use]
    pub(super) const fn new(port: u16, liveness: Liveness, watching: Watching) -> Self {
        Self { port, liveness, watching, sockets: BTreeMap::new() }
    }

    /// Serves at the addresses of `local`.
    pub(super) fn serve(&mut self, local: &LocalNode) {
        let mut wanted = BTreeMap::new();
        for (_, place) in local.places.present().filter(|_| self.port != 0) {
            // Before there is a lease the subnet is the node's own address.
            let subnet = Some(place.subnet).filter(|subnet| *subnet != Prefix::host(place.address));
            wanted.insert(place.address, (local.ways.vrf.clone(), subnet));
            // Tunnels lead to the main routing table.
            wanted.extend(subnet.map(|own| (own.addr(), (None, subnet))));
        }
        let Self { port, liveness, watching, sockets } = self;
        sockets.retain(|address, socket| {
            let stays = wanted.get(address).is_some_and(|(vrf, _)| *vrf == socket.vrf);
            if !stays {
                socket.task.abort();
                liveness.forget(&name(*address), &socket.progress);
            }
            stays
        });
        for (address, (vrf, subnet)) in wanted {
            let socket = sockets.entry(address).or_insert_with(|| {
                let heartbeat = liveness.heartbeat(name(address), LIMIT);
                let progress = heartbeat.progress();
                let (sender, receiver) = watch::channel(subnet);
                let at = SocketAddr::new(address, *port);
                let task = tokio::spawn(answer((at, vrf.clone()), receiver, heartbeat, watching.clone()));
                Socket { vrf, subnet: sender, task, progress }
            });
            socket.subnet.send_replace(subnet);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.sockets.values().for_each(|socket| socket.task.abort());
    }
}

/// What the loop that answers at `address` is called.
fn name(address: IpAddr) -> String {
    format!("responder at {address}")
}

async fn answer(
    (at, vrf): (SocketAddr, Option<IfName>),
    subnet: watch::Receiver<Option<Prefix>>,
    heartbeat: Heartbeat,
    watching: Watching,
) {
    loop {
        heartbeat.idle();
        match kernel::probe::listener(at, vrf.as_ref()).and_then(UdpSocket::from_std) {
            Ok(socket) => answer_at(&Arc::new(socket), &subnet, &watching).await,
            Err(error) => tracing::debug!(%at, %error, "probes are not answered here"),
        }
        heartbeat.back_within(PAUSE);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Answers until the socket fails.
async fn answer_at(socket: &Arc<UdpSocket>, subnet: &watch::Receiver<Option<Prefix>>, watching: &Watching) {
    let mut limit = Limit { since: Instant::now(), count: 0 };
    let mut buffer = [0; far::LENGTH];
    loop {
        // What is longer is cut off in the buffer: only its beginning says anything.
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // What an earlier answer met.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let received = buffer.get(..length).unwrap_or_default();
        let (asked, question) = (packet::asked(received), far::question(received));
        if (asked.is_none() && question.is_none()) || !limit.allows(Instant::now()) {
            continue;
        }
        if let Some(number) = asked {
            let answer = Answer { number, clock: packet::now(), subnet: *subnet.borrow() };
            let _ = socket.try_send_to(&packet::render(&answer), from);
        }
        if let Some(question) = question {
            take(socket, from, question, watching);
        }
    }
}

/// Does what another node's `netd trace` asks for, beside the answers to others.
fn take(socket: &Arc<UdpSocket>, from: SocketAddr, question: Question, watching: &Watching) {
    // A flow that is watched keeps no socket open that another one shall follow at this address.
    let socket = Arc::downgrade(socket);
    let reply = move |answer: &[u8]| {
        if let Some(socket) = socket.upgrade() {
            let _ = socket.try_send_to(answer, from);
        }
    };
    match question {
        Question::See(watch) => watching.begin(from.ip().to_canonical(), watch, move |turn| {
            let answer = match turn {
                Turn::Now => far::ready(watch.number),
                Turn::Later => far::busy(watch.number),
            };
            reply(&answer);
        }),
        Question::End(number) => watching.end(number, move |report| reply(&far::saw(number, report))),
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
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    use netstate::PerFamily;

    use super::*;
    use crate::plan::Place;

    #[test]
    fn answers_are_limited_in_each_second() {
        let since = Instant::now();
        let mut limit = Limit { since, count: 0 };
        let mut given = |after: u64| (0..1000).filter(|_| limit.allows(since + Duration::from_millis(after))).count();
        assert_eq!((given(0), given(999), given(1000), given(1500), given(7000)), (200, 0, 200, 0, 200));
    }

    /// As a node serves at first and once it has its lease.
    #[tokio::test]
    async fn a_subnet_that_comes_later_is_answered_by_the_socket_that_was_there() {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        let asker = UdpSocket::bind((address, 0)).await.unwrap();
        // A port that was just free at another address of the same network.
        let port = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap().local_addr().unwrap().port();
        let watching = Watching::new(PathBuf::from("/nonexistent"), String::new());
        let mut responder = Responder::new(port, Liveness::default(), watching);
        let mut tasks = Vec::new();
        for (number, subnet) in [(1, "127.0.0.1/32"), (2, "172.7.21.0/24"), (3, "172.7.22.0/24")] {
            let subnet: Prefix = subnet.parse().unwrap();
            let mac = "7a:00:00:00:00:01".parse().unwrap();
            let place = Place { subnet, public_ip: address, address, node_network: Prefix::host(address), mac };
            let places = PerFamily::new(Some(place), None);
            responder.serve(&LocalNode::plain(places, IfName::literal("lo")));
            tasks.push(responder.sockets[&address].task.id());
            let answer = loop {
                let mut buffer = [0; 1400];
                asker.send_to(&packet::request(number, packet::LENGTH), (address, port)).await.unwrap();
                let wait = tokio::time::timeout(Duration::from_millis(100), asker.recv(&mut buffer)).await;
                if let Ok(Ok(length)) = wait {
                    break packet::read(&buffer[..length]).unwrap();
                }
            };
            assert_eq!((answer.number, answer.subnet), (number, (number > 1).then_some(subnet)));
        }
        tasks.dedup();
        assert_eq!(tasks.len(), 1);
    }
}
