//! The record of which virtual servers are ours: the set `record` of our nft table.
//!
//! IPVS rows carry no mark of their maker. An element is there before its virtual server is made and goes after it, in the
//! same namespace; nothing has to be kept on disk. Its comment is the Service's name, whole: with at most 63 bytes each,
//! namespace and name always fit.
//!
//! That the table exists does not say that the record is whole: a first start that found no source has recorded nothing of
//! what its predecessor left. Invariant: the record has its marker, which says since when, only behind a pass that has put
//! in order whatever was adopted; before that every start adopts anew what stands at addresses of our link.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netstate::ipvs::VirtualServerKey;
use netstate::nft::{Datum, Element, Name, Row, RowKey, Set, Type};
use netstate::{IpFamily, Protocol};
use reconcile::Rows;

use super::nft::{self, table_key};
use crate::object::ObjectName;

/// Name of the set.
pub(super) const SET: &str = "record";

/// The set, in the table of a family.
pub(super) fn set(addr: Type) -> Set {
    Set::of(vec![addr, Type::InetProto, Type::InetService])
}

/// The element of a virtual server that is made for `service`.
#[must_use]
pub(crate) fn element(server: &VirtualServerKey, service: &ObjectName) -> (RowKey, Row) {
    (key(server), Row::Element(Element::member().comment(service.shared())))
}

/// The key of a virtual server's element.
#[must_use]
pub(crate) fn key(server: &VirtualServerKey) -> RowKey {
    element_key(
        IpFamily::of(server.addr),
        vec![server.addr.into(), Datum::Protocol(server.protocol), Datum::Port(server.port)],
    )
}

/// The marker of the record of a family that is whole since `since`, in seconds of Unix time.
#[must_use]
pub(crate) fn marker(family: IpFamily, since: u64) -> (RowKey, Row) {
    (marker_key(family), Row::Element(Element::member().comment(format!("whole since {since}"))))
}

/// No virtual server has this address and port.
#[must_use]
pub(crate) fn marker_key(family: IpFamily) -> RowKey {
    element_key(family, vec![family.unspecified().into(), Datum::Protocol(Protocol::Tcp), Datum::Port(0)])
}

fn element_key(family: IpFamily, parts: Vec<Datum>) -> RowKey {
    nft::element(family, SET, parts)
}

/// The virtual server that an observed row records as ours, if it does.
#[must_use]
pub(crate) fn server(row: &RowKey) -> Option<VirtualServerKey> {
    let RowKey::Element(element) = row else { return None };
    if element.set != Name::literal(SET) || !IpFamily::ALL.map(table_key).contains(&element.table) {
        return None;
    }
    let [addr, Datum::Protocol(protocol), Datum::Port(port)] = &*element.key else { return None };
    let addr = match addr {
        Datum::Ipv4(addr) => IpAddr::V4(*addr),
        Datum::Ipv6(addr) => IpAddr::V6(*addr),
        _ => return None,
    };
    (*port != 0).then_some(VirtualServerKey { protocol: *protocol, addr, port: *port })
}

/// The Service that a recorded virtual server was made for.
#[must_use]
pub(crate) fn service(value: &Row) -> Option<ObjectName> {
    let Row::Element(Element { comment: Some(comment), .. }) = value else { return None };
    ObjectName::shown(comment)
}

/// The virtual servers that the rows of our nft table record as ours.
#[must_use]
pub(crate) fn servers(rows: &Rows<RowKey, Row>) -> BTreeSet<VirtualServerKey> {
    rows.keys().filter_map(server).collect()
}

/// The families with a record: virtual servers were made here, or the marker says that there was none to make.
pub(crate) fn kept(rows: &Rows<RowKey, Row>) -> impl Iterator<Item = IpFamily> {
    let recorded: BTreeSet<IpFamily> = servers(rows).iter().map(|server| IpFamily::of(server.addr)).collect();
    IpFamily::ALL.into_iter().filter(move |family| recorded.contains(family) || is_whole(rows, *family))
}

/// True when the record of a family has its marker: whatever of the family is not in it is not ours.
#[must_use]
pub(crate) fn is_whole(rows: &Rows<RowKey, Row>, family: IpFamily) -> bool {
    rows.contains_key(&marker_key(family))
}

#[cfg(test)]
mod tests {
    use netstate::nft::{ElementKey, Family, TableKey};
    use reconcile::{Observed, Owner};

    use super::*;

    fn web() -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 }
    }

    fn rows(rows: impl IntoIterator<Item = (RowKey, Row)>) -> Rows<RowKey, Row> {
        rows.into_iter().map(|(key, value)| (key, Observed { value, owner: Owner::Ours })).collect()
    }

    #[test]
    fn the_longest_names_are_read_back_whole() {
        let longest = ObjectName::new(&"n".repeat(63), &"s".repeat(63));
        let (key, value) = element(&web(), &longest);
        assert_eq!((server(&key), service(&value)), (Some(web()), Some(longest)));
        let Row::Element(element) = value else { panic!("no element") };
        assert!(element.comment.unwrap().len() <= 128, "nft takes no longer comment");
    }

    #[test]
    fn the_marker_is_no_virtual_server() {
        assert_eq!(server(&marker(IpFamily::V4, 7).0), None);
    }

    #[test]
    fn an_element_of_another_set_or_table_records_nothing() {
        let (RowKey::Element(ours), _) = element(&web(), &ObjectName::new("default", "web")) else {
            panic!("an element")
        };
        assert_eq!(server(&RowKey::Element(ours.clone())), Some(web()));
        let set = ElementKey { set: Name::literal("services"), ..ours.clone() };
        assert_eq!(server(&RowKey::Element(set)), None);
        for (family, name) in [(Family::Ip, "theirs"), (Family::Inet, "ipvs-proxy")] {
            let table = TableKey { family, name: Name::literal(name) };
            assert_eq!(server(&RowKey::Element(ElementKey { table, ..ours.clone() })), None, "{family:?} {name}");
        }
    }

    #[test]
    fn a_family_is_kept_by_a_virtual_server_or_by_its_marker_and_by_nothing_else() {
        let name = ObjectName::new("default", "web");
        let served = |addr: &str| element(&VirtualServerKey { addr: addr.parse().unwrap(), ..web() }, &name);
        let (v4, v6) = (IpFamily::V4, IpFamily::V6);
        for (found, families) in [
            (vec![], vec![]),
            (vec![served("192.168.0.10")], vec![v4]),
            (vec![marker(v6, 7)], vec![v6]),
            (vec![served("fd00::10"), marker(v6, 7)], vec![v6]),
            (vec![served("192.168.0.10"), marker(v6, 7)], vec![v4, v6]),
        ] {
            assert_eq!(kept(&rows(found.clone())).collect::<Vec<_>>(), families, "{found:?}");
        }
    }

    #[test]
    fn each_family_has_its_record() {
        let server = VirtualServerKey { addr: "fd00::10".parse().unwrap(), ..web() };
        let rows = rows([element(&server, &ObjectName::new("default", "web")), marker(IpFamily::V6, 7)]);
        assert_eq!(servers(&rows), BTreeSet::from([server]));
        assert_eq!(IpFamily::ALL.map(|family| is_whole(&rows, family)), [false, true]);
    }

    #[test]
    fn a_record_is_whole_with_its_marker_only() {
        let begun = rows([element(&web(), &ObjectName::new("default", "web"))]);
        assert_eq!((servers(&begun), is_whole(&begun, IpFamily::V4)), (BTreeSet::from([web()]), false));
        let mut whole = begun.clone();
        whole.extend(rows([marker(IpFamily::V4, 7)]));
        assert_eq!((servers(&whole), is_whole(&whole, IpFamily::V4)), (BTreeSet::from([web()]), true));
    }
}
