//! The chains FORWARD and INPUT of iptables-legacy, and those before them, which nftables does not show: read by a socket's options,
//! never written.
//!
//! The kernel gives a whole table as `struct ipt_entry` one behind the other (include/uapi/linux/netfilter_ipv4/
//! ip_tables.h and ip6_tables.h). Invariants: asking for a table makes it, so it is asked for only where the kernel names it; what
//! cannot be read in a rule is a condition, and a chain is left at its first rule that decides about everything.

pub mod arrival;
mod rule;

use std::io;
use std::net::IpAddr;

use netstate::{IpFamily, Prefix};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Cause, KernelError};
use crate::sockopt;

/// IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES and the same of IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// XT_TABLE_MAXNAMELEN, and `sizeof(struct ipt_getinfo)`: name, hooks, five entries, five underflows, two sizes.
const NAME: usize = 32;
const INFO: usize = NAME + 4 + 20 + 20 + 8;

/// Where the entries of the hooks, their underflows and the size of the entries stand in it.
const HOOKS: usize = NAME + 4;
const UNDERFLOWS: usize = HOOKS + 20;
const SIZE: usize = INFO - 4;

/// The tables in which what is forwarded can be denied.
pub const FORWARDING: [&str; 3] = ["mangle", "filter", "security"];

/// A hook of a table by its number (enum nf_inet_hooks).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Prerouting,
    Input,
    Forward,
}

impl Hook {
    /// Where its chain begins and where its policy stands, as the information about the table says.
    fn places(self, info: &[u8]) -> Option<(usize, usize)> {
        let at = 4 * match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
        };
        number(info, HOOKS + at).zip(number(info, UNDERFLOWS + at))
    }

    /// The name of the chain that every table has for it.
    const fn chain(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
        }
    }
}

/// Bytes of `struct ipt_get_entries` before the entries, which are aligned to eight.
const ENTRIES: usize = 40;

/// Readings of a table before giving up on one that changes all the time.
const TRIES: u32 = 30;
/// Rules that are read: chains that lead to the same ones again and again would take for ever.
const RULES: u32 = 100_000;

/// Chains within chains; the kernel takes no table whose chains lead back to themselves.
const DEPTH: u32 = 256;

/// Bytes of `struct xt_entry_target` and `struct xt_entry_match` before their data.
const EXTENSION: usize = 32;

/// XT_RETURN, NF_DROP and NF_ACCEPT as verdicts of a standard target.
const RETURN: i32 = -5;
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// How the chain FORWARD denies what none of its rules accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// By its policy.
    Policy,
    /// By a rule without conditions.
    Rule,
}

/// What the chain FORWARD does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// How it denies what none of its rules accepts; `None` when that passes.
    pub denial: Option<Denial>,
    /// Senders that a rule accepts or leads elsewhere.
    from: Vec<Prefix>,
    /// Receivers.
    to: Vec<Prefix>,
}

impl Forwarding {
    /// True when a rule sees to packets from the network and one to those for it, or nothing is denied by default.
    #[must_use]
    pub fn passes(&self, network: Prefix) -> bool {
        let covered = |seen: &[Prefix]| seen.iter().any(|wider| wider.covers(&network));
        self.denial.is_none() || (covered(&self.from) && covered(&self.to))
    }
}

/// True when the calling thread's network namespace has the table of this family.
#[must_use]
pub fn has_table(family: IpFamily, table: &str) -> bool {
    let file = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(file).is_ok_and(|tables| tables.lines().any(|name| name == table))
}

/// Reads the chain FORWARD of one of [`FORWARDING`], which must be there ([`has_table`]).
///
/// # Errors
/// When the kernel refuses, for want of CAP_NET_ADMIN say, or its answer cannot be read.
pub fn forwarding(family: IpFamily, table: &str) -> Result<Forwarding, KernelError> {
    let object = || format!("chain FORWARD of iptables-legacy's table {table}");
    let error = |cause: Cause| KernelError::new("read", object(), cause);
    let (info, entries) =
        read(family, table).map_err(|source| KernelError::io("read", object(), "getsockopt", source))?;
    let unreadable = || error(Cause::Unexpected("a table that ends too early or leads too far".to_owned()));
    let (begin, underflow) = Hook::Forward.places(&info).ok_or_else(unreadable)?;
    Table { family, entries: &entries, underflow, left: RULES }.judge(begin).ok_or_else(unreadable)
}

/// Reads information and entries of the table, again while somebody writes it: the two are of one moment.
fn read(family: IpFamily, table: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (domain, level) = match family {
        IpFamily::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        IpFamily::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let fd = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = named(table, INFO);
    sockopt::get(&fd, level, GET_INFO, &mut info)?;
    for _ in 0..TRIES {
        let size = number(&info, SIZE).unwrap_or_default();
        let mut entries = named(table, ENTRIES + size);
        let size = u32::try_from(size).map_err(io::Error::other)?;
        if let Some(field) = entries.get_mut(NAME..NAME + 4) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
        let read = sockopt::get(&fd, level, GET_ENTRIES, &mut entries);
        let before = std::mem::replace(&mut info, named(table, INFO));
        sockopt::get(&fd, level, GET_INFO, &mut info)?;
        match read {
            Ok(()) if before == info => return Ok((info, entries.split_off(ENTRIES))),
            // One of another size (get_entries), or of the same size and other places.
            Err(error) if error.raw_os_error() != Some(libc::EAGAIN) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// A buffer that begins with the table's name.
fn named(table: &str, size: usize) -> Vec<u8> {
    let mut buffer = table.as_bytes().to_vec();
    buffer.resize(size, 0);
    buffer
}

/// The number of four bytes at `at`.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let number = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_ne_bytes(*number)).ok()
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk::<2>().map(|number| usize::from(u16::from_ne_bytes(*number)))
}

/// The table's entries.
struct Table<'a> {
    family: IpFamily,
    entries: &'a [u8],
    /// Where the policy of FORWARD stands.
    underflow: usize,
    /// Rules that may still be read.
    left: u32,
}

/// How a chain ends for a packet that no condition concerns.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Accepted,
    Denied,
    Left,
}

impl Table<'_> {
    /// What the chain does that begins at `begin`; `None` when it cannot be read.
    fn judge(mut self, begin: usize) -> Option<Forwarding> {
        let mut found = Forwarding::default();
        let end = self.walk(begin, DEPTH, &mut found)?;
        found.denial = (end == End::Denied).then(|| found.denial.unwrap_or(Denial::Rule));
        Some(found)
    }

    /// Walks through the chain that begins at `at`.
    fn walk(&mut self, mut at: usize, depth: u32, found: &mut Forwarding) -> Option<End> {
        // Each entry is longer than nothing, so this ends with the table.
        while at < self.entries.len() {
            self.left = self.left.checked_sub(1)?;
            let rule = Rule::read(self.family, self.entries.get(at..)?)?;
            match rule.verdict {
                Some(DROP) if rule.is_everything() => {
                    found.denial = (at == self.underflow).then_some(Denial::Policy);
                    return Some(End::Denied);
                }
                Some(ACCEPT) if rule.is_everything() => return Some(End::Accepted),
                Some(RETURN) if rule.is_everything() => return Some(End::Left),
                Some(target @ 0..) if rule.is_everything() && depth > 0 => {
                    let target = usize::try_from(target).ok()?;
                    match self.walk(target, depth - 1, found)? {
                        End::Left => {}
                        end => return Some(end),
                    }
                }
                Some(ACCEPT | 0..) => {
                    found.from.extend(rule.from);
                    found.to.extend(rule.to);
                }
                None if rule.denies && rule.is_everything() => return Some(End::Denied),
                _ => {}
            }
            at += rule.length;
        }
        Some(End::Left)
    }
}

/// One entry.
struct Rule {
    length: usize,
    /// Of a standard target: a verdict below zero, or where it leads to.
    verdict: Option<i32>,
    /// An extension that denies.
    denies: bool,
    /// Conditions other than one on the sender or on the receiver.
    conditional: bool,
    /// The one condition, on the sender or on the receiver.
    from: Option<Prefix>,
    to: Option<Prefix>,
}

/// Where the fields of an entry stand.
struct Layout {
    /// Bytes of an address.
    address: usize,
    /// The masks of interfaces, and their end.
    interfaces: (usize, usize),
    /// Protocol, flags and inversions, as a range that is empty without conditions.
    rest: (usize, usize),
    /// The target's place and the entry's length.
    offsets: usize,
    /// The first match.
    elements: usize,
}

const V4: Layout = Layout { address: 4, interfaces: (48, 80), rest: (80, 84), offsets: 88, elements: 112 };
const V6: Layout = Layout { address: 16, interfaces: (96, 128), rest: (128, 133), offsets: 140, elements: 168 };

impl Layout {
    const fn of(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => V4,
            IpFamily::V6 => V6,
        }
    }
}

impl Rule {
    fn read(family: IpFamily, entry: &[u8]) -> Option<Self> {
        let Layout { address, interfaces, rest, offsets, elements } = Layout::of(family);
        let (target, length) = (short(entry, offsets)?, short(entry, offsets + 2)?);
        let entry = entry.get(..length)?;
        let is_set = |(from, to)| entry.get(from..to).is_none_or(|bytes: &[u8]| bytes.iter().any(|byte| *byte != 0));
        let masks = 2 * address;
        let from = network(entry.get(..address)?, entry.get(masks..masks + address)?);
        let to = network(entry.get(address..masks)?, entry.get(masks + address..masks + 2 * address)?);
        // One that denotes every address is no condition.
        let (any_sender, any_receiver) = (from.is_some_and(|p| p.len() == 0), to.is_some_and(|p| p.len() == 0));
        let conditional = is_set(interfaces)
            || is_set(rest)
            || !only_comments(entry.get(elements..target)?)
            || from.is_none()
            || to.is_none()
            || !(any_sender || any_receiver);
        let name = entry.get(target + 2..target + EXTENSION - 1)?;
        let name = name.split(|byte| *byte == 0).next()?;
        let verdict = entry.get(target + EXTENSION..).and_then(|data| data.first_chunk::<4>());
        let alone = |network: Option<Prefix>, other: bool| network.filter(|_| !conditional && other);
        Some(Self {
            // What is as long as nothing would be read for ever.
            length: if length > elements { length } else { return None },
            verdict: verdict.filter(|_| name.is_empty()).map(|bytes| i32::from_ne_bytes(*bytes)),
            denies: matches!(name, b"REJECT" | b"DROP"),
            conditional,
            from: alone(from, any_receiver).filter(|_| !any_sender),
            to: alone(to, any_sender).filter(|_| !any_receiver),
        })
    }

    /// True when it concerns every packet.
    const fn is_everything(&self) -> bool {
        !self.conditional && self.from.is_none() && self.to.is_none()
    }
}

/// True when these matches say something and ask for nothing.
fn only_comments(mut matches: &[u8]) -> bool {
    while !matches.is_empty() {
        let size = short(matches, 0).unwrap_or_default();
        let comment = matches.get(2..10).is_some_and(|name| name == b"comment\0");
        match matches.get(size..) {
            Some(rest) if comment && size > EXTENSION => matches = rest,
            _ => return false,
        }
    }
    true
}

/// The network of an address and its mask; `None` for a mask with gaps.
fn network(address: &[u8], mask: &[u8]) -> Option<Prefix> {
    let ones = mask.iter().map(|byte| byte.leading_ones()).take_while(|ones| *ones > 0);
    let len: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let mut leading = 0;
    for ones in ones {
        leading += ones;
        if ones < 8 {
            break;
        }
    }
    let address: IpAddr = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(four), _) => four.into(),
        (_, Ok(six)) => six.into(),
        _ => return None,
    };
    (len == leading).then(|| Prefix::new(address, u8::try_from(len).ok()?).ok()).flatten()
}

/// A table whose FORWARD begins and has its policy where the first eight bytes say.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_table(input: &[u8]) {
    let (Some(begin), Some(underflow), Some(entries)) = (number(input, 0), number(input, 4), input.get(8..)) else {
        return;
    };
    for family in [IpFamily::V4, IpFamily::V6] {
        let judged = Table { family, entries, underflow, left: RULES }.judge(begin);
        assert!(judged.is_none_or(|found| found.from.len() + found.to.len() <= entries.len()));
    }
    arrival::fuzz_input(input);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of IPv4 from `from` to `to`, with a match of that name, and a target: its name and its verdict.
    pub(super) fn entry(from: &str, to: &str, matched: Option<&str>, target: (&str, i32)) -> Vec<u8> {
        let mut bytes = vec![0; V4.elements];
        for (text, at) in [(from, 0), (to, 4)] {
            let network: Prefix = text.parse().unwrap();
            let IpAddr::V4(addr) = network.addr() else { panic!("{text}") };
            let mask = u32::MAX.checked_shl(32 - u32::from(network.len())).unwrap_or(0);
            bytes[at..at + 4].copy_from_slice(&addr.octets());
            bytes[at + 8..at + 12].copy_from_slice(&mask.to_be_bytes());
        }
        if let Some(name) = matched {
            bytes.extend(extension(name, 0));
        }
        let place = u16::try_from(bytes.len()).unwrap();
        bytes.extend(extension(target.0, target.1));
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[V4.offsets..V4.offsets + 2].copy_from_slice(&place.to_ne_bytes());
        bytes[V4.offsets + 2..V4.offsets + 4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn extension(name: &str, data: i32) -> Vec<u8> {
        let mut bytes = vec![40, 0];
        bytes.extend(name.bytes());
        bytes.resize(EXTENSION, 0);
        bytes.extend(data.to_ne_bytes());
        bytes.resize(40, 0);
        bytes
    }

    pub(super) const ANY: &str = "0.0.0.0/0";
    const PODS: &str = "172.7.0.0/16";

    fn judge(entries: &[Vec<u8>]) -> Option<Forwarding> {
        let underflow = entries.iter().rev().skip(1).map(Vec::len).sum();
        let bytes = entries.concat();
        Table { family: IpFamily::V4, entries: &bytes, underflow, left: RULES }.judge(0)
    }

    fn passes(found: Option<Forwarding>) -> (Option<Denial>, bool) {
        let found = found.unwrap();
        (found.denial, found.passes(PODS.parse().unwrap()))
    }

    #[test]
    fn policy_and_rules_are_judged_in_their_order() {
        let drop = || entry(ANY, ANY, None, ("", DROP));
        let both = |matched| vec![entry(PODS, ANY, matched, ("", ACCEPT)), entry(ANY, PODS, matched, ("", ACCEPT))];
        let with = |mut rules: Vec<Vec<u8>>| {
            rules.push(drop());
            passes(judge(&rules))
        };
        assert_eq!(with(vec![]), (Some(Denial::Policy), false));
        assert_eq!(with(both(None)), (Some(Denial::Policy), true));
        assert_eq!(with(both(Some("comment"))), (Some(Denial::Policy), true));
        assert_eq!(with(both(Some("tcp"))), (Some(Denial::Policy), false), "a condition");
        assert_eq!(with(vec![entry(PODS, PODS, None, ("", ACCEPT))]), (Some(Denial::Policy), false), "both at once");
        assert_eq!(with(vec![entry(ANY, ANY, None, ("REJECT", 0))]), (Some(Denial::Rule), false));
        assert_eq!(with(vec![entry(ANY, ANY, Some("tcp"), ("REJECT", 0))]), (Some(Denial::Policy), false));
        assert_eq!(with(vec![entry(ANY, ANY, None, ("", ACCEPT))]), (None, true));
        assert_eq!(with(vec![entry(ANY, ANY, None, ("LOG", 0))]), (Some(Denial::Policy), false));
    }

    #[test]
    fn whatever_the_bytes_are_reading_ends() {
        let whole = [entry(PODS, ANY, Some("comment"), ("", ACCEPT)), entry(ANY, ANY, None, ("", DROP))].concat();
        for length in 0..whole.len() {
            let cut = whole.get(..length).unwrap();
            let _ = Table { family: IpFamily::V4, entries: cut, underflow: 0, left: RULES }.judge(0);
            let _ = Table { family: IpFamily::V6, entries: cut, underflow: 0, left: RULES }.judge(length / 2);
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[length] = value;
                let _ = Table { family: IpFamily::V4, entries: &changed, underflow: 0, left: RULES }.judge(0);
            }
        }
        // Every rule leads to the first one.
        let loops = vec![entry(ANY, ANY, None, ("", 0)); 4];
        assert_eq!(judge(&loops), None);
    }

    #[test]
    fn mask_with_gaps_is_a_condition_that_is_not_understood() {
        assert_eq!(network(&[172, 7, 0, 0], &[255, 255, 0, 0]), Some(PODS.parse().unwrap()));
        assert_eq!(network(&[172, 7, 0, 0], &[255, 0, 255, 0]), None);
        assert_eq!(network(&[172, 7, 0, 0], &[255, 0xf0, 1, 0]), None);
        assert_eq!(network(&[0; 16], &[0; 16]), Some("::/0".parse().unwrap()));
        assert_eq!(network(&[0; 3], &[0; 3]), None);
    }
}
