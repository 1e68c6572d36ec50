//! The virtual addresses on the link of `ipvs-proxy`, as messages (linux/if_addr.h).

use anyhow::{Context, Result};
use lab::Host;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::calls::{Calls, question};
use super::conversation::Conversation;
use crate::proxy::LINK;
use crate::proxy::bytes::{kept, message};

const NEW: u16 = 20;
const GET: u16 = 22;
/// Length of `ifaddrmsg`, and where it has the link's number.
const HEAD: usize = 8;
const INDEX: usize = 4;
const INET: [u8; HEAD] = [2, 0, 0, 0, 0, 0, 0, 0];
/// IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS.
const OWN: [u16; 3] = [1, 2, 8];
/// Addresses in one datagram: some 60 KiB, as `ipvs-proxy` has them.
const TOGETHER: usize = 1000;

/// Addresses, without the number of their link.
#[derive(Debug)]
pub(super) struct Addresses(Vec<Vec<u8>>);

impl Addresses {
    /// Reads them.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn read(host: &Host) -> Result<Self> {
        let index = index(host)?;
        let found = Conversation::open(host, NETLINK_ROUTE)?.list(&question(GET, &INET))?;
        let ours = found.iter().filter(|message| message.get(INDEX..HEAD) == Some(&index));
        Ok(Self(
            ours.filter_map(|message| Some([message.get(..INDEX)?, &kept(message.get(HEAD..)?, &OWN)].concat()))
                .collect(),
        ))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The changes that give them to the link of `host`.
    pub(super) fn fill(&self, host: &Host, calls: &mut Calls) -> Result<()> {
        let index = index(host)?;
        for part in self.0.chunks(TOGETHER) {
            let make = |address: &Vec<u8>| {
                let (head, attributes) = address.split_at_checked(INDEX).unwrap_or_default();
                message(NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, &[head, &index, attributes].concat())
            };
            calls.change(NETLINK_ROUTE, part.iter().flat_map(make).collect());
        }
        Ok(())
    }

    /// The question that lists all addresses.
    pub(super) fn list(calls: &mut Calls) {
        calls.dump(NETLINK_ROUTE, &question(GET, &INET));
    }
}

fn index(host: &Host) -> Result<[u8; 4]> {
    let index: u32 = host.read(format!("/sys/class/net/{LINK}/ifindex"))?.trim().parse().context("ifindex")?;
    Ok(index.to_ne_bytes())
}
