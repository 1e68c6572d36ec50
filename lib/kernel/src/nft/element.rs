//! Elements of sets and maps, to and from attributes.
//!
//! In the kernel a key or a value is a string of bytes; a concatenation has each part padded to four. Which parts are in
//! it only the declared types show, so they are needed to read it.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netstate::nft::{Data, Datum, Element, ElementKey, List, Set, SetKind, TableKey, Type};
use netstate::{IfName, MacAddr, Protocol};

use super::compile::Unwritable;
use super::counter::{self, Counted, Tally};
use super::field::name_bytes;
use super::wire::{
    LIST_ELEM, check_comment, comment, comment_bytes, kind, message, put_value, put_verdict, value, verdict,
};
use crate::attribute::{self, Writer};
use crate::socket::Message;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_USERDATA: u16 = 6;
const ELEM_EXPRESSION: u16 = 7;

/// Bytes of elements in one message: their list is one attribute, whose length has 16 bits.
pub(super) const MESSAGE_BYTES: usize = 32 * 1024;

/// Bytes that most elements fit into.
const ITEM_BYTES: usize = 96;

/// The bytes of a key or value.
pub(super) fn bytes(parts: &[Datum]) -> Vec<u8> {
    written(parts, parts.len() > 1)
}

/// The bytes of parts, each `padded` or not.
fn written(parts: &[Datum], padded: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ITEM_BYTES);
    for part in parts {
        match part {
            Datum::Ipv4(addr) => bytes.extend_from_slice(&addr.octets()),
            Datum::Ipv6(addr) => bytes.extend_from_slice(&addr.octets()),
            Datum::Mac(mac) => bytes.extend_from_slice(&mac.0),
            Datum::Protocol(protocol) => bytes.push(protocol.number()),
            Datum::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
            Datum::Mark(number) | Datum::Index(number) => bytes.extend_from_slice(&number.to_ne_bytes()),
            Datum::IfName(name) => bytes.extend_from_slice(&name_bytes(name)),
            Datum::Raw(raw) => bytes.extend_from_slice(raw),
        }
        if padded {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// The bytes of a key in front of an index.
pub(super) fn place_bytes(key: &ElementKey) -> Vec<u8> {
    written(&key.key, true)
}

/// Bytes of a key or value of these types.
pub(super) fn size(types: &[Type]) -> usize {
    match types {
        [one] => one.size(),
        many => many.iter().map(|ty| ty.size().next_multiple_of(4)).sum(),
    }
}

/// The parts of a key or value; raw when the types do not show them.
fn parts(types: &[Type], bytes: &[u8]) -> Vec<Datum> {
    parts_of(types, bytes, types.len() > 1).unwrap_or_else(|| vec![Datum::Raw(bytes.to_vec())])
}

/// The parts of bytes in which each is `padded` or not; `None` when the types do not show them.
fn parts_of(types: &[Type], bytes: &[u8], padded: bool) -> Option<Vec<Datum>> {
    let (mut rest, mut parts) = (bytes, Vec::with_capacity(types.len()));
    for ty in types {
        let size = if padded { ty.size().next_multiple_of(4) } else { ty.size() };
        let (part, behind) = rest.split_at_checked(size)?;
        parts.push(datum(*ty, part.get(..ty.size())?)?);
        rest = behind;
    }
    // Junk behind a name or between parts would be lost, and the key would name no element.
    (rest.is_empty() && written(&parts, padded) == bytes).then_some(parts)
}

fn datum(ty: Type, bytes: &[u8]) -> Option<Datum> {
    Some(match ty {
        Type::Ipv4Addr | Type::Ipv6Addr => attribute::ip(bytes)?.into(),
        Type::EtherAddr => Datum::Mac(MacAddr(bytes.try_into().ok()?)),
        Type::InetProto => Datum::Protocol(Protocol::from_number(*bytes.first()?)?),
        Type::InetService => Datum::Port(attribute::be16(bytes)?),
        Type::Mark => Datum::Mark(attribute::u32(bytes)?),
        Type::Index => Datum::Index(attribute::u32(bytes)?),
        Type::IfName => Datum::IfName(IfName::new(attribute::text(bytes)).ok()?),
        Type::Unknown(_) => return None,
    })
}

/// Refuses an element that has not the types that its set declares: the kernel would take the bytes.
pub(super) fn check(set: &Set, key: &ElementKey, element: &Element) -> Result<(), Unwritable> {
    let fits = |parts: &[Datum], types: &[Type]| {
        parts.len() == types.len() && parts.iter().zip(types).all(|(part, ty)| part.ty() == Some(*ty))
    };
    let data = match (&element.data, &set.kind) {
        (Data::Nothing, SetKind::Set) | (Data::Verdict(_), SetKind::VerdictMap) => true,
        (Data::Value(parts), SetKind::Map(types)) => fits(parts, types),
        _ => false,
    };
    if !fits(&key.key, &set.key) || !data {
        return Err(format!("the element has not the types that set {} declares", key.set));
    }
    check_comment(element.comment.as_deref())
}

/// Refuses a list of values that its set does not declare, or that cannot be written.
pub(super) fn check_list(set: &Set, key: &ElementKey, list: &List) -> Result<(), Unwritable> {
    let SetKind::Map(data) = &set.kind else { return Err(unfit(key)) };
    let [place @ .., Type::Index] = set.key.as_slice() else { return Err(unfit(key)) };
    let types: Vec<Type> = key.key.iter().filter_map(Datum::ty).collect();
    let fits = |(addr, _): &(IpAddr, u16)| data.first() == Datum::from(*addr).ty().as_ref();
    if types == place && set.is_list() && list.values().iter().all(fits) { Ok(()) } else { Err(unfit(key)) }
}

fn unfit(key: &ElementKey) -> Unwritable {
    format!("the list has not the types that set {} declares", key.set)
}

/// What stands at an index behind the key of a list, as an item that is ready to be put into a message; without a value only its key.
pub(super) fn listed_item(place: &[u8], index: u32, value: Option<(IpAddr, u16)>) -> Vec<u8> {
    let mut list = Writer::behind(Vec::with_capacity(ITEM_BYTES));
    list.nest(LIST_ELEM, |item| {
        put_value(item, ELEM_KEY, &[place, &index.to_ne_bytes()].concat());
        if let Some((addr, port)) = value {
            put_value(item, ELEM_DATA, &bytes(&[addr.into(), Datum::Port(port)]));
        }
    });
    list.finish()
}

/// An element as an item of a list, ready to be put into a message.
pub(super) fn item(key: &ElementKey, element: Option<&Element>) -> Vec<u8> {
    counting_item(key, element, None)
}

/// The same, of an element that has counted that much.
pub(super) fn counting_item(key: &ElementKey, element: Option<&Element>, tally: Option<Tally>) -> Vec<u8> {
    let mut list = Writer::behind(Vec::with_capacity(ITEM_BYTES));
    list.nest(LIST_ELEM, |item| {
        put_value(item, ELEM_KEY, &bytes(&key.key));
        let Some(element) = element else { return };
        match &element.data {
            Data::Nothing => {}
            Data::Value(parts) => put_value(item, ELEM_DATA, &bytes(parts)),
            Data::Verdict(verdict) => put_verdict(item, ELEM_DATA, verdict),
        }
        if let Some(comment) = &element.comment {
            item.put(ELEM_USERDATA, &comment_bytes(comment));
        }
        if tally.is_some() {
            item.nest(ELEM_EXPRESSION, |expression| counter::put(expression, tally));
        }
    });
    list.finish()
}

/// A message of type `kind` about the elements `items` of a set.
pub(super) fn list_message<'a>(
    kind: u16,
    table: &TableKey,
    set: &str,
    items: impl IntoIterator<Item = &'a [u8]>,
) -> Message {
    let flags = if kind == kind::NEWSETELEM { NLM_F_CREATE } else { 0 };
    message(kind, flags, table.family.number(), |body| {
        body.put_str(LIST_TABLE, table.name.as_str()).put_str(LIST_SET, set);
        let mut items = items.into_iter().peekable();
        if items.peek().is_some() {
            body.nest(LIST_ELEMENTS, |list| items.for_each(|item| list.extend(item)));
        }
    })
}

/// The elements in the attributes of an NFT_MSG_NEWSETELEM.
pub(super) fn read<'a>(set: &'a Set, attributes: &'a [u8]) -> impl Iterator<Item = (Vec<Datum>, Element)> + 'a {
    items(attributes).filter_map(|item| of_item(set, item))
}

/// What each element in the attributes of an NFT_MSG_NEWSETELEM has counted.
pub(super) fn counted<'a>(set: &'a Set, attributes: &'a [u8]) -> impl Iterator<Item = Counted> + 'a {
    items(attributes).filter_map(|item| {
        let key = value(attribute::find(item, ELEM_KEY)?)?;
        let tally = counter::read(attribute::find(item, ELEM_EXPRESSION)?)?;
        Some(Counted { key: parts(&set.key, key), tally })
    })
}

fn items(attributes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = attribute::find(attributes, LIST_ELEMENTS).unwrap_or_default();
    attribute::iter(list).filter(|(kind, _)| *kind == LIST_ELEM).map(|(_, item)| item)
}

fn of_item(set: &Set, item: &[u8]) -> Option<(Vec<Datum>, Element)> {
    let key = value(attribute::find(item, ELEM_KEY)?)?;
    let key = if is_plain(item) { parts(&set.key, key) } else { vec![Datum::Raw(key.to_vec())] };
    let comment = attribute::find(item, ELEM_USERDATA).and_then(comment);
    Some((key, Element { data: data(set, item), comment: comment.map(Into::into) }))
}

/// False for an interval's end and the catch-all element, which a plain key cannot say.
fn is_plain(item: &[u8]) -> bool {
    attribute::find(item, ELEM_FLAGS).is_none_or(|flags| flags.iter().all(|byte| *byte == 0))
}

/// What an indexed map holds: lists by their keys, and elements that are part of none.
pub(super) type Lists = (Vec<(Vec<Datum>, List)>, Vec<(Vec<Datum>, Element)>);

/// Reads an indexed map from the attributes of all NFT_MSG_NEWSETELEM about it. A key is decoded once, however many values it has.
pub(super) fn read_lists<'a>(set: &Set, attributes: impl Iterator<Item = &'a [u8]>) -> Lists {
    let (mut listed, mut lists, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let types = set.key.split_last().map_or(&[][..], |(_, place)| place);
    for item in attributes.flat_map(items) {
        match place_of(item, size(&set.key)) {
            Some((place, index)) => listed.push((place, index, item)),
            None => others.extend(of_item(set, item)),
        }
    }
    listed.sort_unstable_by_key(|(place, index, _)| (*place, *index));
    for group in listed.chunk_by(|(one, ..), (other, ..)| one == other) {
        let place = group.first().and_then(|(place, ..)| parts_of(types, place, true));
        match place {
            Some(place) => {
                let entry = |(_, index, item): &(_, u32, &[u8])| {
                    let element = || of_item(set, item).map_or(Element::member(), |(_, element)| element);
                    (*index, endpoint(item).ok_or_else(element))
                };
                lists.push((place, List::observed(group.iter().map(entry))));
            }
            None => others.extend(group.iter().filter_map(|(.., item)| of_item(set, item))),
        }
    }
    (lists, others)
}

/// The key of an item in front of the index, and that; `None` for a key that is not `length` bytes long.
fn place_of(item: &[u8], length: usize) -> Option<(&[u8], u32)> {
    let key = value(attribute::find(item, ELEM_KEY)?)?;
    let (place, index) = key.split_last_chunk::<4>()?;
    (key.len() == length && is_plain(item)).then(|| (place, u32::from_ne_bytes(*index)))
}

/// The address and port that an item leads to, when it says nothing else.
fn endpoint(item: &[u8]) -> Option<(IpAddr, u16)> {
    if attribute::find(item, ELEM_USERDATA).is_some() {
        return None;
    }
    let (addr, port) = value(attribute::find(item, ELEM_DATA)?)?.split_last_chunk::<4>()?;
    let [high, low, 0, 0] = *port else { return None };
    Some((attribute::ip(addr)?, u16::from_be_bytes([high, low])))
}

fn data(set: &Set, item: &[u8]) -> Data {
    let Some(data) = attribute::find(item, ELEM_DATA) else { return Data::Nothing };
    if let Some(verdict) = verdict(data) {
        return Data::Verdict(verdict);
    }
    let types: &[Type] = match &set.kind {
        SetKind::Map(types) => types,
        SetKind::Set | SetKind::VerdictMap => &[],
    };
    Data::Value(parts(types, value(data).unwrap_or_default()))
}

/// A message that adds one element.
pub(super) fn add_message(key: &ElementKey, item: &[u8]) -> Message {
    list_message(kind::NEWSETELEM, &key.table, key.set.as_str(), [item])
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::nft::{Family, Name};
    use proptest::prelude::*;

    fn part() -> impl Strategy<Value = Datum> {
        let ports = any::<u16>().prop_map(Datum::Port);
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(Datum::Protocol);
        prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| Datum::Ipv4(octets.into())),
            any::<[u8; 16]>().prop_map(|octets| Datum::Ipv6(octets.into())),
            prop::sample::select(protocols.to_vec()),
            ports,
            any::<u32>().prop_map(Datum::Mark),
            any::<u32>().prop_map(Datum::Index),
            "[a-z][a-z0-9.-]{0,14}".prop_map(|name| Datum::IfName(IfName::new(name).unwrap())),
        ]
    }

    fn types(parts: &[Datum]) -> Vec<Type> {
        parts.iter().filter_map(Datum::ty).collect()
    }

    /// An indexed map to endpoints of IPv4, with such a key in front of the index.
    fn of_lists(place: &[Datum]) -> Set {
        let key = types(place).into_iter().chain([Type::Index]).collect();
        Set::map(key, vec![Type::Ipv4Addr, Type::InetService])
    }

    fn key_of(key: Vec<Datum>) -> ElementKey {
        ElementKey {
            table: TableKey { family: Family::Ip, name: Name::literal("t") },
            set: Name::literal("s"),
            key: key.into(),
        }
    }

    #[test]
    fn what_is_no_part_of_a_list_is_read_with_it_or_beside_it() {
        let place = vec![Datum::Protocol(Protocol::Tcp), Datum::Port(80)];
        let (set, key) = (of_lists(&place), key_of(place.clone()));
        let at = place_bytes(&key);
        let value = |last| Some((IpAddr::from([172, 7, 21, last]), 8080));
        let commented = ElementKey { key: [place, vec![Datum::Index(1)]].concat().into(), ..key.clone() };
        let element = Element::value(vec![Datum::Ipv4([172, 7, 21, 3].into()), Datum::Port(8080)]).comment("mine");
        let items = [
            listed_item(&at, 0, value(2)),
            item(&commented, Some(&element)),
            listed_item(&at, 7, value(9)),
            item(&key_of(vec![Datum::Raw(vec![1, 2, 3])]), Some(&Element::member())),
        ];
        let messages = items.map(|item| add_message(&key, &item));
        let (lists, others) = read_lists(&set, messages.iter().map(|message| &message.body[4..]));
        let [(found, list)] = lists.as_slice() else { panic!("{lists:?}") };
        assert_eq!((&**found, list.values()), (&*key.key, &[value(2).unwrap()][..]));
        assert_eq!((list.element(1), list.indexes().collect::<Vec<_>>()), (Some(element), vec![0, 1, 7]));
        assert_eq!(others, [(vec![Datum::Raw(vec![1, 2, 3])], Element::member())]);
    }

    #[test]
    fn lists_that_their_set_does_not_declare_are_refused() {
        let place = vec![Datum::Protocol(Protocol::Tcp), Datum::Port(80)];
        let (set, key) = (of_lists(&place), key_of(place));
        let of = |addr: &str| [(addr.parse().unwrap(), 80)].into_iter().collect::<List>();
        assert_eq!(check_list(&set, &key, &of("172.7.21.2")), Ok(()));
        assert!(check_list(&set, &key, &of("fd00::2")).is_err(), "another family");
        assert!(check_list(&set, &key_of(vec![Datum::Port(80)]), &of("172.7.21.2")).is_err(), "another key");
        let plain = Set::map(types(&key.key), vec![Type::Ipv4Addr, Type::InetService]);
        assert!(check_list(&plain, &key, &of("172.7.21.2")).is_err(), "no index");
    }

    proptest! {
        #[test]
        fn written_element_is_read_back(
            key in prop::collection::vec(part(), 1..4),
            data in prop::collection::vec(part(), 1..4),
            comment in prop::option::of("[ !#-~]{0,128}"),
        ) {
            let set = Set::map(types(&key), types(&data));
            let table = TableKey { family: Family::Ip, name: Name::literal("t") };
            let at = ElementKey { table, set: Name::literal("s"), key: key.into() };
            let element = Element { data: Data::Value(data), comment: comment.map(Into::into) };
            prop_assert_eq!(check(&set, &at, &element), Ok(()));
            let message = add_message(&at, &item(&at, Some(&element)));
            let read: Vec<_> = read(&set, &message.body[4..]).collect();
            prop_assert_eq!(read, vec![(at.key.to_vec(), element)]);
        }

        #[test]
        fn written_lists_are_read_back_whatever_the_kernels_order_is(
            place in prop::collection::vec(part(), 1..4),
            values in prop::collection::vec((any::<[u8; 4]>(), any::<u16>()), 0..20),
            from in any::<prop::sample::Index>(),
        ) {
            let (set, key) = (of_lists(&place), key_of(place));
            let list: List = values.into_iter().map(|(octets, port)| (octets.into(), port)).collect();
            prop_assert_eq!(check_list(&set, &key, &list), Ok(()));
            let at = place_bytes(&key);
            let mut messages: Vec<Message> =
                list.indexes().map(|index| add_message(&key, &listed_item(&at, index, list.value(index)))).collect();
            if !messages.is_empty() {
                let middle = from.index(messages.len());
                messages.rotate_left(middle);
            }
            let (lists, others) = read_lists(&set, messages.iter().map(|message| &message.body[4..]));
            let expected = if list.values().is_empty() { vec![] } else { vec![(key.key.to_vec(), list)] };
            prop_assert_eq!((lists, others), (expected, vec![]));
        }

        #[test]
        fn any_bytes_can_be_read_and_written_again(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            key in prop::collection::vec(part(), 1..4),
            fit in any::<bool>(),
        ) {
            let types = types(&key);
            let mut bytes = bytes;
            if fit {
                bytes.resize(size(&types), 0);
            }
            prop_assert_eq!(super::bytes(&parts(&types, &bytes)), bytes);
        }
    }
}
