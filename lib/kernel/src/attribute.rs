//! Netlink attributes (`nlattr`): type, length, value, padded to four bytes (include/uapi/linux/netlink.h).
//!
//! Reading is tolerant: a torn tail ends the list, an unknown attribute is skipped. One attribute that we do not
//! understand must never hide the row that carries it.

use std::net::{IpAddr, Ipv4Addr};

/// NLA_F_NESTED and NLA_F_NET_BYTEORDER, which share the type field.
const FLAGS: u16 = 0xc000;

/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;

/// The attributes in `bytes`, as (type, value).
pub(crate) fn iter(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, t0, t1] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & !FLAGS, value))
    })
}

/// The value of the first attribute of type `kind`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    iter(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A 32-bit number in host order.
pub(crate) fn u32(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A 16-bit number in network order.
pub(crate) fn be16(value: &[u8]) -> Option<u16> {
    value.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes))
}

/// An IPv4 address.
pub(crate) fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(value).map(Ipv4Addr::from).ok()
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// A text up to its first NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// Appends attributes to a message body.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Starts behind a fixed header, whose length is a multiple of four.
    pub(crate) const fn behind(header: Vec<u8>) -> Self {
        Self { bytes: header }
    }

    /// Appends one attribute. Values over 65,531 bytes do not fit the 16-bit length; callers split their lists before.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.get(..usize::from(length) - 4).unwrap_or(value));
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a NUL-terminated string.
    pub(crate) fn put_str(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(kind, &value)
    }

    /// Appends an attribute that holds what `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len().saturating_sub(start)).unwrap_or(u16::MAX);
        self.bytes.truncate(start.saturating_add(usize::from(length)));
        if let Some(field) = self.bytes.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *field = length.to_ne_bytes();
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends attributes that are written already.
    pub(crate) fn extend(&mut self, attributes: &[u8]) {
        self.bytes.extend_from_slice(attributes);
    }

    /// The finished body.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Appends to a body that stands already.
pub(crate) fn append(body: &mut Vec<u8>, fill: impl FnOnce(&mut Writer)) {
    let mut writer = Writer::behind(std::mem::take(body));
    fill(&mut writer);
    *body = writer.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_attributes_are_read_back_and_torn_tails_end_the_list() {
        let mut writer = Writer::default();
        writer.put(1, &[7]).put_str(2, "ab").nest(3, |inner| {
            inner.put(9, &[1, 2, 3, 4]);
        });
        let bytes = writer.finish();
        let read: Vec<_> = iter(&bytes).collect();
        assert_eq!(read[0], (1, &[7][..]));
        assert_eq!(read[1], (2, &b"ab\0"[..]));
        assert_eq!(find(read[2].1, 9), Some(&[1, 2, 3, 4][..]));
        assert_eq!(iter(&bytes[..bytes.len() - 1]).count(), 2);
        assert_eq!(iter(&[0, 0, 1, 0]).count(), 0);
    }
}
