//! A Service of SCTP with packets. No kernel of the tests has the protocol itself, so that the two first packets of an association are
//! written and read here: a client sends an INIT, an endpoint answers it with an INIT ACK.
//!
//! Invariant: what is read is what the network card of the client or the endpoint had, behind every translation of the node.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Place, eventually};
use netstate::IpFamily;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::{Nodes, SOON, families};

/// Number of the protocol (RFC 9260).
const SCTP: u8 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// How long a packet may be on its way before another one is sent.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: sig}
spec:
  type: NodePort
  clusterIP: 192.168.0.20
  clusterIPs: [192.168.0.20, \"fd09::20\"]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: sig, port: 3868, nodePort: 30868, protocol: SCTP}]
";

/// An endpoint that answers, and the addresses of the clients' Pod, of the outside host and of the bridge.
struct Family {
    family: IpFamily,
    endpoint: &'static str,
    pod: &'static str,
    outside: &'static str,
    bridge: &'static str,
    places: [&'static str; 2],
}

const FAMILIES: [Family; 2] = [
    Family {
        family: IpFamily::V4,
        endpoint: "172.7.21.2",
        pod: "172.7.21.3",
        outside: "10.4.7.200",
        bridge: "172.7.21.1",
        places: ["192.168.0.20:3868", "10.4.7.21:30868"],
    },
    Family {
        family: IpFamily::V6,
        endpoint: "fd07:21::2",
        pod: "fd07:21::3",
        outside: "fd04:7::200",
        bridge: "fd07:21::1",
        places: ["[fd09::20]:3868", "[fd04:7::21]:30868"],
    },
];

/// Associations are led to the endpoint, whose answer comes from where the client sent to; only a Pod at the virtual address keeps its
/// own.
pub(crate) fn both_ends_of_an_association_find_each_other(mode: &str) -> Result<()> {
    let nodes = families::start()?;
    let slice = |family: &Family| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {}\n\
             metadata: {{name: sig-{}, labels: {{kubernetes.io/service-name: sig}}}}\n\
             ports: [{{name: sig, port: 3868, protocol: SCTP}}]\nendpoints: [{{addresses: [\"{}\"]}}]\n",
            family.family,
            family.family.to_string().to_lowercase(),
            family.endpoint
        )
    };
    nodes.publish("sig.yaml", &FAMILIES.iter().fold(SERVICE.to_owned(), |text, family| text + &slice(family)))?;
    let _proxy = families::proxy(&nodes, mode, &[families::DUAL[0], families::DUAL[1], "--nodeport-addresses=all"])?;
    for family in &FAMILIES {
        for (number, place) in family.places.iter().enumerate() {
            let to: SocketAddr = place.parse()?;
            let pod_is_seen_as = if number == 0 { family.pod } else { family.bridge };
            let clients = [
                (End::open(nodes.pod("172.7.21.3")?, family.pod)?, pod_is_seen_as),
                (End::open(nodes.outside()?, family.outside)?, family.bridge),
            ];
            for (client, seen_as) in clients {
                associate(&nodes, family, (&client, seen_as), to)
                    .with_context(|| format!("{} to {to}", client.addr))?;
            }
        }
    }
    Ok(())
}

/// One handshake, with a port of its own for each try.
fn associate(nodes: &Nodes, family: &Family, (client, seen_as): (&End, &str), to: SocketAddr) -> Result<()> {
    let endpoint = End::open(nodes.pod("172.7.21.2")?, family.endpoint)?;
    let mut port = 40_000;
    eventually(SOON, || {
        port += 1;
        client.send(Packet { chunk: INIT, from: SocketAddr::new(client.addr, port), to, tag: 0 })?;
        let init = endpoint.receive(INIT)?;
        ensure!(init.to == SocketAddr::new(endpoint.addr, 3868), "{init:?}");
        ensure!(init.from.ip() == seen_as.parse::<IpAddr>()?, "the endpoint saw {}", init.from);
        endpoint.send(Packet { chunk: INIT_ACK, from: init.to, to: init.from, tag: TAG })?;
        let ack = client.receive(INIT_ACK)?;
        let expected = Packet { chunk: INIT_ACK, from: to, to: SocketAddr::new(client.addr, port), tag: TAG };
        ensure!(ack == expected, "{ack:?}");
        Ok(())
    })
}

/// The tag that the client asks for.
const TAG: u32 = 0x5347_0001;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    chunk: u8,
    from: SocketAddr,
    to: SocketAddr,
    tag: u32,
}

/// Sockets of a machine or Pod: one that writes whole packets, one that reads what its network card has.
struct End {
    addr: IpAddr,
    writer: OwnedFd,
    reader: OwnedFd,
}

impl End {
    fn open(place: &impl Place, addr: &str) -> Result<Self> {
        let addr: IpAddr = addr.parse()?;
        let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (writer, reader) = place.within(|| -> nix::Result<_> {
            let writer = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            let reader =
                socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            setsockopt(&reader, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
            Ok((writer, reader))
        })??;
        Ok(Self { addr, writer, reader })
    }

    fn send(&self, packet: Packet) -> Result<()> {
        // The port of the address means nothing to a socket that writes whole packets.
        let to = SockaddrStorage::from(SocketAddr::new(packet.to.ip(), 0));
        sendto(self.writer.as_raw_fd(), &packet.bytes()?, &to, MsgFlags::empty()).map(drop)?;
        Ok(())
    }

    /// The next packet of that kind that comes in.
    fn receive(&self, chunk: u8) -> Result<Packet> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 2048];
        while Instant::now() < deadline {
            let Ok(length) = recv(self.reader.as_raw_fd(), &mut bytes, MsgFlags::empty()) else { continue };
            let packet = Packet::read(&bytes[..length]);
            if let Some(packet) = packet.filter(|packet| packet.chunk == chunk && packet.to.ip() == self.addr) {
                return Ok(packet);
            }
        }
        bail!("no chunk {chunk} has come to {}", self.addr)
    }
}

impl Packet {
    fn bytes(&self) -> Result<Vec<u8>> {
        let mut sctp = Vec::new();
        sctp.extend(self.from.port().to_be_bytes());
        sctp.extend(self.to.port().to_be_bytes());
        sctp.extend(self.tag.to_be_bytes());
        sctp.extend([0; 4]);
        sctp.extend([self.chunk, 0, 0, 20]);
        // The tag that the other side shall use, window, streams out and in, number of the first piece of data.
        sctp.extend(TAG.to_be_bytes());
        sctp.extend(65_536_u32.to_be_bytes());
        sctp.extend([0, 1, 0, 1]);
        sctp.extend(1_u32.to_be_bytes());
        let sum = checksum(&sctp);
        sctp[8..12].copy_from_slice(&sum.to_le_bytes());
        let length = u16::try_from(sctp.len())?;
        let mut packet = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = (length + 20).to_be_bytes();
                // The kernel fills in identification and checksum (raw(7)).
                let head = [0x45, 0, high, low, 0, 0, 0, 0, 64, SCTP, 0, 0];
                [&head[..], &from.octets(), &to.octets()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let [high, low] = length.to_be_bytes();
                [&[0x60, 0, 0, 0, high, low, SCTP, 64][..], &from.octets(), &to.octets()].concat()
            }
            (from, to) => bail!("{from} and {to} are of two families"),
        };
        packet.append(&mut sctp);
        Ok(packet)
    }

    /// A packet of SCTP as it comes behind the header of the link.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (from, to, protocol, sctp): (IpAddr, IpAddr, u8, &[u8]) = match bytes.first()? >> 4 {
            4 => {
                let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
                (source.into(), destination.into(), *bytes.get(9)?, bytes.get(usize::from(bytes[0] & 15) * 4..)?)
            }
            6 => {
                let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
                (source.into(), destination.into(), *bytes.get(6)?, bytes.get(40..)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(sctp.get(at..at + 2)?.try_into().ok()?));
        let tag = u32::from_be_bytes(sctp.get(4..8)?.try_into().ok()?);
        let (from, to) = (SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?));
        (protocol == SCTP).then_some(Self { chunk: *sctp.get(12)?, from, to, tag })
    }
}

/// CRC32c, which the kernel checks before it tracks an association.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
