//! Virtual and real servers of IPVS, as messages (include/uapi/linux/ip_vs.h).
//!
//! Invariant: they are written by netlink, as many in a datagram as `ipvs-proxy` sends, and listed in both of the kernel's ways.

use anyhow::{Context, Result};
use lab::{Host, generic_netlink};
use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::Listing;
use super::calls::{Calls, question};
use super::conversation::Conversation;
use crate::proxy::bytes::{attribute, find, half, kept, message, nested};

/// IPVS_CMD_*.
const NEW_SERVICE: u8 = 1;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const GET_DEST: u8 = 8;
/// IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_DEST.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
/// IPVS_SVC_ATTR_AF, _PROTOCOL, _ADDR, _PORT; these with _SCHED_NAME, _TIMEOUT and _NETMASK; _FLAGS.
const IDENTITY: [u16; 4] = [1, 2, 3, 4];
const OF_SERVICE: [u16; 7] = [1, 2, 3, 4, 6, 8, 9];
const FLAGS: u16 = 7;
/// IP_VS_SVC_F_HASHED: the kernel's own.
const HASHED: u32 = 2;
/// IPVS_DEST_ATTR_ADDR, _PORT, _FWD_METHOD, _WEIGHT, _U_THRESH, _L_THRESH, _ADDR_FAMILY.
const OF_DEST: [u16; 7] = [1, 2, 3, 4, 5, 6, 11];
/// Length of genlmsghdr.
const HEAD: usize = 4;
/// Messages in one datagram, as `ipvs-proxy` has them.
const TOGETHER: usize = 128;
/// IP_VS_SO_GET_DESTS, and the lengths of ip_vs_get_dests and of ip_vs_dest_entry.
const GET_DESTS: u32 = 64 + 1024 + 64 + 1 + 3;
const LISTING: usize = 24;
const ENTRY: usize = 96;

/// A virtual server with its real servers, each as its own attributes.
#[derive(Debug)]
struct Server {
    service: Vec<u8>,
    reals: Vec<Vec<u8>>,
}

/// All of a machine.
#[derive(Debug)]
pub(super) struct Servers {
    family: u16,
    all: Vec<Server>,
}

impl Servers {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(host: &Host) -> Result<Self> {
        let kernel = Conversation::open(host, NETLINK_GENERIC)?;
        let family = generic_netlink::family(kernel.socket(), "IPVS")?;
        let part = |message: &[u8], kind| Some(find(message.get(HEAD..)?, kind)?.to_vec());
        let mut all = Vec::new();
        for message in kernel.list(&question(family, &head(GET_SERVICE)))? {
            let service = part(&message, SERVICE).context("a virtual server without attributes")?;
            let of = [&head(GET_DEST)[..], &nested(SERVICE, &kept(&service, &IDENTITY))].concat();
            let found = kernel.list(&question(family, &of))?;
            let reals = found.iter().filter_map(|message| Some(kept(&part(message, DEST)?, &OF_DEST))).collect();
            all.push(Server { service, reals });
        }
        Ok(Self { family, all })
    }

    /// Numbers of virtual and of real servers.
    pub(super) fn counts(&self) -> [usize; 2] {
        [self.all.len(), self.all.iter().map(|server| server.reals.len()).sum()]
    }

    /// The changes that make them: virtual servers first.
    pub(super) fn fill(&self, calls: &mut Calls) {
        let services = self.all.iter().map(|server| self.order(NEW_SERVICE, &nested(SERVICE, &server.made())));
        let reals = self.all.iter().flat_map(|server| server.reals.iter().map(|real| (server.identity(), real)));
        let reals = reals.map(|(of, real)| self.order(NEW_DEST, &[nested(SERVICE, &of), nested(DEST, real)].concat()));
        let orders: Vec<Vec<u8>> = services.chain(reals).collect();
        orders.chunks(TOGETHER).for_each(|part| calls.change(NETLINK_GENERIC, part.concat()));
    }

    /// The questions that list them.
    pub(super) fn list(&self, by: Listing, calls: &mut Calls) {
        calls.dump(NETLINK_GENERIC, &question(self.family, &head(GET_SERVICE)));
        match by {
            Listing::Option => {
                for buffer in self.all.iter().filter_map(Server::listing) {
                    calls.option(GET_DESTS, &buffer);
                }
            }
            Listing::Netlink => {
                for server in &self.all {
                    let of = [&head(GET_DEST)[..], &nested(SERVICE, &server.identity())].concat();
                    calls.dump(NETLINK_GENERIC, &question(self.family, &of));
                }
            }
        }
    }

    fn order(&self, command: u8, body: &[u8]) -> Vec<u8> {
        message(self.family, NLM_F_REQUEST, &[&head(command), body].concat())
    }
}

impl Server {
    fn identity(&self) -> Vec<u8> {
        kept(&self.service, &IDENTITY)
    }

    /// The attributes with which it is made.
    fn made(&self) -> Vec<u8> {
        let flags = find(&self.service, FLAGS)
            .and_then(|value| value.first_chunk())
            .map_or(0, |flags| u32::from_ne_bytes(*flags));
        let flags = [flags & !HASHED, u32::MAX].map(u32::to_ne_bytes).concat();
        [kept(&self.service, &OF_SERVICE), attribute(FLAGS, &flags)].concat()
    }

    /// The buffer of getsockopt(2) for its real servers.
    fn listing(&self) -> Option<Vec<u8>> {
        let [_, protocol, addr, port] = IDENTITY.map(|kind| find(&self.service, kind).unwrap_or_default());
        let count = u32::try_from(self.reals.len()).ok()?;
        let protocol = u32::from(half(protocol, 0)?).to_ne_bytes();
        let head = [&protocol, addr.get(..4)?, port.get(..2)?, &[0; 6], &count.to_ne_bytes()].concat();
        let mut buffer = head;
        buffer.resize(LISTING + ENTRY * self.reals.len(), 0);
        Some(buffer)
    }
}

const fn head(command: u8) -> [u8; HEAD] {
    [command, 1, 0, 0]
}
