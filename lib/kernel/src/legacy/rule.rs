//! One rule of iptables-legacy: what it does, and whether it concerns a first packet of which some is known.
//!
//! Invariant: what is not known of the packet or not understood of a condition is open, never a match and never a mismatch.

use std::net::IpAddr;

use netstate::IpFamily;

use super::{EXTENSION, Layout, RETURN, short};
use crate::nft::arrival::Arrival;

/// What inverts a condition: IPT_INV_VIA_IN and its like, the same for IPv6 (include/uapi/linux/netfilter_ipv4/ip_tables.h).
const INV_IN: u8 = 0x01;
const INV_OUT: u8 = 0x02;
const INV_TOS: u8 = 0x04;
const INV_FROM: u8 = 0x08;
const INV_TO: u8 = 0x10;
const INV_PROTOCOL: u8 = 0x40;

/// Targets that let a packet go on to the next rule.
const PASSING: [&[u8]; 14] = [
    b"LOG",
    b"NFLOG",
    b"ULOG",
    b"MARK",
    b"CONNMARK",
    b"SET",
    b"TRACE",
    b"AUDIT",
    b"TCPMSS",
    b"DSCP",
    b"TOS",
    b"CT",
    b"RATEEST",
    b"CHECKSUM",
];

/// The bit of a new connection in masks of states: XT_CONNTRACK_STATE_BIT(IP_CT_NEW).
const NEW: u8 = 0x08;

/// XT_CONNTRACK_STATE_ALIAS: it was written as a match `state`.
const STATE_ALIAS: u16 = 1 << 13;

/// What a rule does with packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Below zero, or where it leads to.
    Verdict(i32),
    Denial,
    Passing,
    Other,
}

/// One entry.
pub(super) struct Rule<'a> {
    family: IpFamily,
    header: &'a [u8],
    matches: &'a [u8],
    /// Bytes of the entry.
    pub(super) length: usize,
    pub(super) target: Target,
}

impl<'a> Rule<'a> {
    /// Reads the entry that `entry` begins with; `None` when it is torn.
    pub(super) fn read(family: IpFamily, entry: &'a [u8]) -> Option<Self> {
        let Layout { offsets, elements, .. } = Layout::of(family);
        let (target, length) = (short(entry, offsets)?, short(entry, offsets.checked_add(2)?)?);
        let entry = entry.get(..length).filter(|_| length > elements)?;
        let name = entry.get(target.checked_add(2)?..target.checked_add(EXTENSION - 1)?)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let verdict = entry.get(target.checked_add(EXTENSION)?..).and_then(|data| data.first_chunk::<4>());
        let target_of = match name {
            b"" => verdict.map_or(Target::Other, |bytes| Target::Verdict(i32::from_ne_bytes(*bytes))),
            b"REJECT" | b"DROP" => Target::Denial,
            name if PASSING.contains(&name) => Target::Passing,
            _ => Target::Other,
        };
        let (header, matches) = (entry.get(..elements)?, entry.get(elements..target)?);
        Some(Self { family, header, matches, length, target: target_of })
    }

    /// True for one that sends every packet back that it concerns.
    pub(super) fn returns(&self) -> bool {
        self.target == Target::Verdict(RETURN)
    }

    /// Whether it concerns the packet; `None` when that is open.
    pub(super) fn matches(&self, arrival: &Arrival) -> Option<bool> {
        let all = self.header_matches(arrival).into_iter().chain(Extensions(self.matches).map(|found| match found {
            Some((name, data)) => extension_matches(name, data, arrival),
            None => None,
        }));
        // One that certainly does not match decides, whatever is open.
        let mut open = false;
        for one in all {
            match one {
                Some(false) => return Some(false),
                Some(true) => {}
                None => open = true,
            }
        }
        (!open).then_some(true)
    }

    fn header_matches(&self, arrival: &Arrival) -> [Option<bool>; 6] {
        let Layout { address, interfaces, rest, .. } = Layout::of(self.family);
        let v6 = self.family == IpFamily::V6;
        // Protocol, then flags and inversions; IPv6 has the class of traffic between them.
        let (flags, inversions) = if v6 { (rest.0 + 3, rest.0 + 4) } else { (rest.0 + 2, rest.0 + 3) };
        let byte = |at: usize| self.header.get(at).copied().unwrap_or_default();
        let inverted = |bit: u8| byte(inversions) & bit != 0;
        let part = |at: usize, length: usize| self.header.get(at..at + length).unwrap_or_default();
        let within = |own: IpAddr, at: usize, bit: u8| {
            let (wanted, mask) = (part(at, address), part(2 * address + at, address));
            covers(&octets(own), wanted, mask) != inverted(bit)
        };
        let names = interfaces.0 - 32;
        let by = |name: &str, at: usize, bit: u8| {
            let mut own = [0; 16];
            own.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
            covers(&own, part(names + at, 16), part(interfaces.0 + at, 16)) != inverted(bit)
        };
        let protocol = short(self.header, rest.0).unwrap_or_default();
        let protocol = protocol == 0 || (protocol == usize::from(arrival.protocol)) != inverted(INV_PROTOCOL);
        // What is only for fragments behind the first one is not for a first packet; the class of traffic is not known.
        let fragments = !v6 && byte(flags) & 0x01 != 0;
        let class = if v6 && byte(flags) & 0x02 != 0 || inverted(INV_TOS) { None } else { Some(!fragments) };
        let from_any = part(2 * address, address).iter().all(|byte| *byte == 0);
        let from = match arrival.from {
            Some(from) => Some(within(from, 0, INV_FROM)),
            None if from_any => Some(true),
            None => None,
        };
        [
            from,
            Some(within(arrival.to, address, INV_TO)),
            Some(by(arrival.link.0.as_str(), 0, INV_IN)),
            Some(by("", 16, INV_OUT)),
            Some(protocol),
            class,
        ]
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// True when `own` is `wanted` in all bits of `mask`.
fn covers(own: &[u8], wanted: &[u8], mask: &[u8]) -> bool {
    own.iter().zip(wanted).zip(mask).all(|((own, wanted), mask)| (own ^ wanted) & mask == 0)
}

/// The matches of a rule, each with its name and data; `None` for what cannot be read.
struct Extensions<'a>(&'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let size = short(self.0, 0).filter(|size| *size > EXTENSION).and_then(|size| self.0.split_at_checked(size));
        let Some((one, rest)) = size else {
            self.0 = &[];
            return Some(None);
        };
        self.0 = rest;
        let name = one.get(2..EXTENSION - 1).and_then(|name| name.split(|byte| *byte == 0).next());
        Some(name.zip(one.get(EXTENSION..)))
    }
}

/// Whether a match concerns the packet, a first one of a connection; `None` when that is open.
fn extension_matches(name: &[u8], data: &[u8], arrival: &Arrival) -> Option<bool> {
    let at = |place: usize| short(data, place).and_then(|number| u16::try_from(number).ok());
    match name {
        b"comment" => Some(true),
        // struct xt_udp: source and destination ports from and to, and what is inverted.
        b"udp" => {
            let any_source = (at(0)?, at(2)?) == (0, u16::MAX) && data.get(8)? & 1 == 0;
            let meant = (at(4)?..=at(6)?).contains(&arrival.port?) != (data.get(8)? & 2 != 0);
            if meant { any_source.then_some(true) } else { Some(false) }
        }
        b"multiport" => multiport_matches(data, arrival.port?),
        // struct xt_state_info.
        b"state" => Some(data.first()? & NEW != 0),
        // struct xt_conntrack_mtinfo1 to 3: flags, inversions, states; of the flags only the one of states.
        b"conntrack" if at(146)? & !STATE_ALIAS == 1 => Some((data.get(150)? & NEW != 0) != (at(148)? & 1 != 0)),
        _ => None,
    }
}

/// struct xt_multiport_v1: which ports are meant, how many, the ports, whether each begins a range, and whether all is
/// inverted.
fn multiport_matches(data: &[u8], port: u16) -> Option<bool> {
    const DESTINATION: u8 = 1;
    if *data.first()? != DESTINATION {
        return None;
    }
    let count = usize::from(*data.get(1)?);
    let at = |index: usize| short(data, 2 + 2 * index).and_then(|number| u16::try_from(number).ok());
    let (mut index, mut found) = (0, false);
    while index < count {
        let from = at(index)?;
        let ranges = *data.get(32 + index)? != 0;
        let to = if ranges { at(index + 1)? } else { from };
        found |= (from..=to).contains(&port);
        index += if ranges { 2 } else { 1 };
    }
    Some(found != (*data.get(47)? != 0))
}
