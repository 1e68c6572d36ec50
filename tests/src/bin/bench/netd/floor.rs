//! The floor: one process that sends a node's messages to the kernel and does nothing else.
//!
//! Invariant: it writes the very rows that `netd` writes for the benchmark's leases, in as few datagrams as `netd` fills, waits for
//! the kernel's word on each datagram, and knows no store, no comparison and no report.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Host;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use netstate::Prefix;
use netstate::route::{ROUTE_PROTOCOL, TABLE_MAIN, spread_metric};

use super::Lease;

/// Bytes per datagram, as `netd` has them.
const DATAGRAM: usize = 60 * 1024;
const HEADER: usize = 16;
/// NLM_F_REQUEST, NLM_F_ACK, and NLM_F_CREATE with NLM_F_REPLACE (linux/netlink.h).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const SET: u16 = 0x500;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;

/// The message of one row of a lease, on the device with that index.
type Row = fn(&Lease, u32) -> Result<Vec<u8>>;

/// What a lease is in the kernel of a node with the vxlan backend.
pub(super) const VXLAN: &[Row] = &[neighbour, forwarding, route];

/// The same with the host-gw backend.
pub(super) const HOST_GW: &[Row] = &[direct_route];

/// Writes the `rows` of `leases` leases through `device` of `host`; the time that it takes.
///
/// # Errors
/// When the kernel refuses one.
pub(super) fn measure(host: &Host, device: &str, rows: &[Row], leases: usize) -> Result<Duration> {
    let index: u32 = host.read(format!("/sys/class/net/{device}/ifindex"))?.trim().parse().context("ifindex")?;
    let mut socket = host.within(|| Socket::new(NETLINK_ROUTE))??;
    socket.bind_auto().context("bind")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect")?;
    let started = Instant::now();
    for write in rows {
        let mut batch = Batch::default();
        for lease in (0..leases).map(|index| Lease { index }) {
            batch.push(&write(&lease, index)?);
            if batch.bytes.len() > DATAGRAM {
                batch.send(&socket)?;
            }
        }
        batch.send(&socket)?;
    }
    Ok(started.elapsed())
}

/// Messages that go together.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
}

impl Batch {
    fn push(&mut self, message: &[u8]) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(message);
    }

    /// Sends them, the last of which asks for an ACK, and waits for that.
    fn send(&mut self, socket: &Socket) -> Result<()> {
        let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) else { return Ok(()) };
        flags.copy_from_slice(&(REQUEST | ACK | SET).to_ne_bytes());
        socket.send(&self.bytes, 0).context("send")?;
        let mut answer = Vec::with_capacity(4096);
        socket.recv(&mut answer, 0).context("receive")?;
        let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk()).map(|bytes| u16::from_ne_bytes(*bytes));
        let code = answer.get(HEADER..).and_then(|bytes| bytes.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
        ensure!((kind, code) == (Some(NLMSG_ERROR), Some(0)), "the kernel refused a row: {:?}", code.map(refusal));
        *self = Self::default();
        Ok(())
    }
}

fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// A message of `kind` with a fixed header and attributes.
fn message(kind: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(header);
    for (kind, value) in attributes {
        bytes.extend_from_slice(&u16::try_from(value.len() + 4)?.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len())?.to_ne_bytes();
    let head = [&length[..], &kind.to_ne_bytes(), &(REQUEST | SET).to_ne_bytes()].concat();
    bytes.get_mut(..head.len()).context("a header")?.copy_from_slice(&head);
    Ok(bytes)
}

/// `ndmsg` of a permanent entry.
fn ndmsg(family: u8, index: u32, flags: u8) -> Vec<u8> {
    [&[family, 0, 0, 0][..], &index.to_ne_bytes(), &[0x80, 0, flags, 0]].concat()
}

fn neighbour(lease: &Lease, index: u32) -> Result<Vec<u8>> {
    message(RTM_NEWNEIGH, &ndmsg(2, index, 0), &[(1, &lease.subnet()), (2, &lease.mac_bytes())])
}

fn forwarding(lease: &Lease, index: u32) -> Result<Vec<u8>> {
    // PF_BRIDGE, NTF_SELF.
    message(RTM_NEWNEIGH, &ndmsg(7, index, 2), &[(2, &lease.mac_bytes()), (1, &lease.node())])
}

/// By way of the first address of the subnet, through the tunnel (RTNH_F_ONLINK).
fn route(lease: &Lease, index: u32) -> Result<Vec<u8>> {
    route_by(lease, lease.subnet(), 4, index)
}

/// By way of the node's address.
fn direct_route(lease: &Lease, index: u32) -> Result<Vec<u8>> {
    route_by(lease, lease.node(), 0, index)
}

fn route_by(lease: &Lease, via: [u8; 4], flags: u8, index: u32) -> Result<Vec<u8>> {
    let metric = spread_metric(&Prefix::new(lease.subnet().into(), 24)?).to_ne_bytes();
    // IPv4, /24, table main, our protocol, scope universe, unicast.
    let header = [2, 24, 0, 0, u8::try_from(TABLE_MAIN)?, ROUTE_PROTOCOL, 0, 1, flags, 0, 0, 0];
    let (subnet, index) = (lease.subnet(), index.to_ne_bytes());
    message(RTM_NEWROUTE, &header, &[(1, &subnet), (6, &metric), (5, &via), (4, &index)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_hold_what_netd_writes() {
        let lease = Lease { index: 258 };
        let text = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let head = |kind: &str, length: &str| format!("{length}000000{kind}0001050000000000000000");
        assert_eq!(
            text(neighbour(&lease, 7).unwrap()),
            head("1c", "30")
                + "02000000"
                + "07000000"
                + "80000000"
                + "08000100"
                + "64410200"
                + "0a000200"
                + "020000000102"
                + "0000"
        );
        assert_eq!(
            text(forwarding(&lease, 7).unwrap()),
            head("1c", "30")
                + "07000000"
                + "07000000"
                + "80000200"
                + "0a000200"
                + "020000000102"
                + "0000"
                + "08000100"
                + "0a800102"
        );
        assert!(text(route(&lease, 7).unwrap()).contains("08000500644102000800040007000000"));
        assert!(text(direct_route(&lease, 7).unwrap()).contains("080005000a8001020800040007000000"));
    }
}
