//! Messages and attributes of netlink as bytes (netlink(7)).
//!
//! Invariant: these are the benchmark's own, not the product's, so an error there cannot hide here.

/// Lengths of nlmsghdr and of an attribute's head.
pub(super) const HEADER: usize = 16;
const HEAD: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;

/// A message with sequence number 0 and a body of whole words.
pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat()
}

/// An attribute, padded.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEAD + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of attributes.
pub(super) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, attributes)
}

/// The attributes in `bytes`, by number.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    marked(bytes).map(|(kind, value)| (kind & !NLA_F_NESTED, value))
}

/// The value of the first attribute `kind`.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The attributes in `bytes` that are of these kinds, as they are.
pub(super) fn kept(bytes: &[u8], kinds: &[u16]) -> Vec<u8> {
    let wanted = marked(bytes).filter(|(kind, _)| kinds.contains(&(kind & !NLA_F_NESTED)));
    wanted.flat_map(|(kind, value)| attribute(kind, value)).collect()
}

fn marked(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(HEAD..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The messages of a datagram, heads included.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?.max(HEADER);
        let message = datagram.get(..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A 16-bit number in host order.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_as_it_was() {
        let bytes = [attribute(1, b"a"), nested(2, &attribute(7, b"four")), attribute(3, b"x")].concat();
        assert_eq!(kept(&bytes, &[1, 2]), [attribute(1, b"a"), nested(2, &attribute(7, b"four"))].concat());
        assert_eq!(find(&bytes, 2), Some(attribute(7, b"four").as_slice()));
        let datagram = [message(9, 5, &bytes), message(3, 0, &[])].concat();
        assert_eq!(messages(&datagram).map(|message| half(message, 4)).collect::<Vec<_>>(), [Some(9), Some(3)]);
    }
}
