//! Asking IPVS for the real servers of one virtual server (include/uapi/linux/ip_vs.h), cheaply enough to do it every millisecond.
//!
//! Invariant: the question is this file's own bytes, not the product's, so an error there cannot hide here.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail};
use lab::{Host, generic_netlink};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::Socket;

use super::bytes::{HEADER, attribute, find, half, message, messages, nested};

/// IPVS_CMD_GET_DEST and IPVS_GENL_VERSION.
const GET_DEST: u8 = 8;
const VERSION: u8 = 1;
/// IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_DEST.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
/// IPVS_SVC_ATTR_AF, _PROTOCOL, _ADDR, _PORT.
const SERVICE_ID: [u16; 4] = [1, 2, 3, 4];
/// IPVS_DEST_ATTR_ADDR, _PORT, _WEIGHT.
const DEST_ADDR: u16 = 1;
const DEST_PORT: u16 = 2;
const DEST_WEIGHT: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const TCP: u16 = 6;
const INET: u16 = 2;
/// Length of nlmsghdr with genlmsghdr.
const BODY: usize = 20;

/// A conversation with the IPVS of one machine.
#[derive(Debug)]
pub(crate) struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel has no IPVS.
    pub(crate) fn open(host: &Host) -> Result<Self> {
        let socket = host.within(generic_netlink::open)??;
        let family = generic_netlink::family(&socket, "IPVS")?;
        Ok(Self { socket, family })
    }

    /// The real servers of a TCP virtual server that take new connections.
    ///
    /// # Errors
    /// What the kernel says; an unknown virtual server has no real servers.
    pub(crate) fn serving(&self, address: SocketAddrV4) -> Result<Vec<SocketAddrV4>> {
        self.socket.send(&self.question(address), 0)?;
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                match half(message, 4) {
                    Some(NLMSG_DONE) => return Ok(found),
                    Some(NLMSG_ERROR) => bail!("GET_DEST of {address}: {:?}", message.get(HEADER..BODY)),
                    _ => found.extend(message.get(BODY..).and_then(real_server)),
                }
            }
        }
    }

    fn question(&self, address: SocketAddrV4) -> Vec<u8> {
        let [family, protocol, addr, port] = SERVICE_ID;
        // The kernel takes 16 bytes for an address of either family.
        let mut padded = address.ip().octets().to_vec();
        padded.resize(16, 0);
        let identity = [
            attribute(family, &INET.to_ne_bytes()),
            attribute(protocol, &TCP.to_ne_bytes()),
            attribute(addr, &padded),
            attribute(port, &address.port().to_be_bytes()),
        ];
        let body = [vec![GET_DEST, VERSION, 0, 0], nested(SERVICE, &identity.concat())].concat();
        message(self.family, NLM_F_REQUEST | NLM_F_DUMP, &body)
    }
}

fn real_server(body: &[u8]) -> Option<SocketAddrV4> {
    let dest = find(body, DEST)?;
    let weight = u32::from_ne_bytes(*find(dest, DEST_WEIGHT)?.first_chunk()?);
    let addr: [u8; 4] = *find(dest, DEST_ADDR)?.first_chunk()?;
    let port = u16::from_be_bytes(*find(dest, DEST_PORT)?.first_chunk()?);
    (weight > 0).then(|| SocketAddrV4::new(Ipv4Addr::from(addr), port))
}
