//! Keys of the table of host ports as texts, for the record of an attachment: DEL removes what it knows and dumps no
//! map.
//!
//! ```text
//! ports4 tcp 8080
//! host-open6-1a2b3c4d fd00::21 udp 53
//! ```
//! Invariant: a text that is read names a set of ours with a key of that set's types; anything else is refused.

use std::net::IpAddr;

use netstate::nft::{Datum, ElementKey, Name, Set, Type};
use netstate::{IpFamily, Protocol};

use super::policy;
use super::table::{self, Scope, address_type};

/// The text of a key.
#[must_use]
pub(crate) fn text(key: &ElementKey) -> String {
    key.key.iter().fold(key.set.to_string(), |text, part| format!("{text} {part}"))
}

/// Reads a text; `None` when it is no key of ours.
#[must_use]
pub(crate) fn parse(text: &str) -> Option<ElementKey> {
    let mut words = text.split(' ');
    let set = Name::new(words.next()?).ok()?;
    let types = declared(&set)?.key;
    let key = types.iter().map(|ty| datum(*ty, words.next()?)).collect::<Option<Vec<Datum>>>()?;
    words.next().is_none().then_some(ElementKey { table: table::key(), set, key: key.into() })
}

fn datum(ty: Type, word: &str) -> Option<Datum> {
    match ty {
        Type::Ipv4Addr => word.parse().ok().map(Datum::Ipv4),
        Type::Ipv6Addr => word.parse().ok().map(Datum::Ipv6),
        Type::InetProto => {
            let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            known.into_iter().find(|protocol| protocol.to_string() == word).map(Datum::Protocol)
        }
        Type::InetService => word.parse().ok().map(Datum::Port),
        _ => None,
    }
}

/// How a set of the table is declared, by its name; `None` when it is none of ours.
#[must_use]
pub(crate) fn declared(set: &Name) -> Option<Set> {
    for family in IpFamily::ALL {
        let address = address_type(family);
        for scope in Scope::ALL {
            if *set == scope.map(family) {
                return Some(Set::map(scope.key_types(address), vec![address, Type::InetService]));
            }
            if set.as_str().starts_with(&policy::set_name(scope, family, "")) {
                return Some(Set::of(scope.key_types(address)));
            }
        }
    }
    None
}

/// True for a key of a map from ports to Pods: who holds it holds the port.
#[must_use]
pub(crate) fn is_target(key: &ElementKey) -> bool {
    policy::of_set(&key.set).is_none()
}

/// True when both keys are of the same port: one in a map, the other in a policy's set.
#[must_use]
pub(crate) fn is_same_port(one: &ElementKey, other: &ElementKey) -> bool {
    let family = |key: &ElementKey| declared(&key.set).map(|set| family_of(&key.set, &set));
    one.key == other.key && family(one) == family(other)
}

fn family_of(name: &Name, set: &Set) -> IpFamily {
    let in_name = name.as_str().split('-').any(|word| matches!(word, "ports4" | "open4"));
    if in_name || set.key.first() == Some(&Type::Ipv4Addr) { IpFamily::V4 } else { IpFamily::V6 }
}

/// The address and port on the host that a key is about, with its protocol.
#[must_use]
pub(crate) fn port_of(key: &[Datum]) -> Option<(Option<IpAddr>, Protocol, u16)> {
    let (host_ip, rest) = match key {
        [Datum::Ipv4(ip), rest @ ..] => (Some(IpAddr::V4(*ip)), rest),
        [Datum::Ipv6(ip), rest @ ..] => (Some(IpAddr::V6(*ip)), rest),
        rest => (None, rest),
    };
    match rest {
        [Datum::Protocol(protocol), Datum::Port(port)] => Some((host_ip, *protocol, *port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for line in [
            "ports4 tcp 8080",
            "ports6 udp 53",
            "host-ports4 10.4.7.21 sctp 1",
            "host-ports6 fd00::21 tcp 65535",
            "open4-1a2b3c4d tcp 8080",
            "host-open6-1a2b3c4d fd00::21 udp 53",
        ] {
            let key = parse(line).unwrap();
            assert_eq!(text(&key), line);
            assert_eq!(is_target(&key), line.contains("ports"), "{line}");
        }
    }

    #[test]
    fn junk_is_no_key() {
        for line in [
            "",
            "ports4",
            "ports4 tcp",
            "ports4 tcp 8080 1",
            "ports4 icmp 8080",
            "ports4 tcp 65536",
            "ports4 10.4.7.21 tcp 80",
            "host-ports4 fd00::21 tcp 80",
            "open4 tcp 80",
            "masters tcp 80",
            "policy-1 tcp 80",
            "ports4  tcp 80",
        ] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn keys_of_one_port_differ_from_those_of_others() {
        let same = |one: &str, other: &str| is_same_port(&parse(one).unwrap(), &parse(other).unwrap());
        assert!(same("ports4 tcp 80", "open4-1 tcp 80"));
        assert!(same("host-ports6 ::1 tcp 80", "host-open6-1 ::1 tcp 80"));
        assert!(
            same("ports6 tcp 80", "open6-1 tcp 80")
                && same("host-ports4 10.0.0.1 tcp 80", "host-open4-1 10.0.0.1 tcp 80")
        );
        assert!(!same("ports4 tcp 80", "open6-1 tcp 80") && !same("ports6 tcp 80", "open4-1 tcp 80"));
        assert!(!same("ports4 tcp 80", "open4-1 udp 80"));
    }
}
