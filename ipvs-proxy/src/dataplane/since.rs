//! Since when each real server drains: the set `draining` of our nft table, beside the [`super::record`].
//!
//! IPVS keeps a weight of 0 and not since when it is 0, so a drain whose beginning was known to this program alone would have its
//! whole time again at each start. The beginning stands in the comment of an element that is written before the weight and goes after
//! the real server. Not an element with a timeout: the kernel would take it away when the time is over, and a missing element says
//! that the drain begins now. Not the wall clock: its steps would lengthen or cut the time. Seconds since the boot are what a table
//! lives in, too.
//!
//! Invariant: who reads an element reads when the weight became 0, or a moment before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::IpFamily;
use netstate::ipvs::{RealServerKey, VirtualServerKey};
use netstate::nft::{Datum, Element, ElementKey, Name, Row, RowKey, Set, Type};
use reconcile::Rows;

use super::nft::table_key;

/// Name of the set.
pub(super) const SET: &str = "draining";

const WORDS: &str = "since second ";
const OF_THE_BOOT: &str = " of the boot";

/// The set of a family.
pub(super) fn set(family: IpFamily) -> Set {
    let addr = if family == IpFamily::V4 { Type::Ipv4Addr } else { Type::Ipv6Addr };
    Set::of(vec![addr, Type::InetProto, Type::InetService, addr, Type::InetService])
}

/// The element of a real server that drains since this second of the boot.
#[must_use]
pub(crate) fn element(real: &RealServerKey, since: u64) -> (RowKey, Row) {
    (key(real), Row::Element(Element::member().comment(format!("{WORDS}{since}{OF_THE_BOOT}"))))
}

/// The key of a real server's element.
#[must_use]
pub(crate) fn key(real: &RealServerKey) -> RowKey {
    let RealServerKey { service: VirtualServerKey { protocol, addr, port }, addr: to, port: to_port } = *real;
    let key = [addr.into(), Datum::Protocol(protocol), Datum::Port(port), to.into(), Datum::Port(to_port)];
    RowKey::Element(ElementKey { table: table_key(IpFamily::of(addr)), set: Name::literal(SET), key: key.into() })
}

/// The drains that are in the rows of our nft tables, each with the second of the boot at which it began.
#[must_use]
pub(crate) fn drains(rows: &Rows<RowKey, Row>) -> BTreeMap<RealServerKey, u64> {
    rows.iter().filter_map(|(key, row)| Some((real(key)?, since(&row.value)?))).collect()
}

fn real(row: &RowKey) -> Option<RealServerKey> {
    let RowKey::Element(element) = row else { return None };
    let is_ours = IpFamily::ALL.iter().any(|family| table_key(*family) == element.table);
    if !is_ours || element.set != Name::literal(SET) {
        return None;
    }
    let [addr, Datum::Protocol(protocol), Datum::Port(port), to, Datum::Port(to_port)] = &*element.key else {
        return None;
    };
    let service = VirtualServerKey { protocol: *protocol, addr: ip(addr)?, port: *port };
    Some(RealServerKey { service, addr: ip(to)?, port: *to_port })
}

const fn ip(datum: &Datum) -> Option<IpAddr> {
    match datum {
        Datum::Ipv4(addr) => Some(IpAddr::V4(*addr)),
        Datum::Ipv6(addr) => Some(IpAddr::V6(*addr)),
        _ => None,
    }
}

fn since(row: &Row) -> Option<u64> {
    let Row::Element(Element { comment: Some(comment), .. }) = row else { return None };
    comment.strip_prefix(WORDS)?.strip_suffix(OF_THE_BOOT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use reconcile::{Observed, Owner};

    use super::*;

    #[test]
    fn the_beginning_of_a_drain_is_read_back_in_either_family() {
        let real = |vip: &str, pod: &str| {
            let service = VirtualServerKey { protocol: Protocol::Tcp, addr: vip.parse().unwrap(), port: 80 };
            RealServerKey { service, addr: pod.parse().unwrap(), port: 8080 }
        };
        let reals = [real("192.168.0.10", "172.7.21.2"), real("fd00::10", "fd07::2")];
        let row = |(key, value): (RowKey, Row)| (key, Observed { value, owner: Owner::Ours });
        let mut rows: Rows<RowKey, Row> = reals.iter().zip([7, 12]).map(|(real, at)| row(element(real, at))).collect();
        assert_eq!(drains(&rows), BTreeMap::from([(reals[0], 7), (reals[1], 12)]));
        let foreign = |change: fn(&mut ElementKey)| {
            let (key, value) = row(element(&reals[0], 7));
            let RowKey::Element(mut key) = key else { panic!("an element") };
            change(&mut key);
            drains(&Rows::from([(RowKey::Element(key), value)]))
        };
        assert_eq!(foreign(|_| ()).len(), 1);
        assert!(foreign(|key| key.set = Name::literal("theirs")).is_empty());
        assert!(foreign(|key| key.table.name = Name::literal("theirs")).is_empty());
        for row in rows.values_mut() {
            row.value = Row::Element(Element::member().comment("web".to_owned()));
        }
        assert_eq!(drains(&rows), BTreeMap::new(), "a comment of somebody else says nothing");
        assert_eq!(set(IpFamily::V6).key.len(), 5);
    }
}
