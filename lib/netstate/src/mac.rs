//! `MacAddr`: a 48-bit hardware address.
//!
//! Invariant: addresses made here are unicast and locally administered (IEEE 802 §8.2.2), so they never
//! clash with a vendor's.

use std::fmt;
use std::str::FromStr;

/// A 48-bit hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A unicast, locally administered address from six bytes of a seed (random or a hash).
    #[must_use]
    pub const fn local(seed: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = seed;
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not six bytes as pairs or fours of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidMac(String);

impl fmt::Display for InvalidMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a hardware address of the form 02:00:5e:10:00:01", self.0)
    }
}

impl std::error::Error for InvalidMac {}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    /// Reads what Go's `net.ParseMAC` reads of six bytes: pairs of digits apart by colons or dashes, or fours by dots.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac(s.to_owned());
        let (separator, digits) = match s {
            _ if s.contains('.') => ('.', 4),
            _ if s.contains('-') => ('-', 2),
            _ => (':', 2),
        };
        let groups: Vec<&str> = s.split(separator).collect();
        let whole = groups.len() * digits == 12 && groups.iter().all(|group| group.len() == digits);
        let number: String = groups.concat();
        if !whole || !number.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let [_, _, bytes @ ..] = u64::from_str_radix(&number, 16).map_err(|_| invalid())?.to_be_bytes();
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_junk_is_refused() {
        let mac: MacAddr = "02:11:22:aa:Bb:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:11:22:aa:bb:ff");
        for other in ["02-11-22-aa-Bb-ff", "0211.22aa.bbff"] {
            assert_eq!(other.parse(), Ok(mac), "{other}");
        }
        for bad in [
            "",
            "02:11:22:33:44",
            "02:11:22:33:44:55:66",
            "2:11:22:33:44:55",
            "02:11:22:33:44:+5",
            "gg:11:22:33:44:55",
            "02:11-22:33:44:55",
            "0211.2233",
            "02.11.22.33.44.55",
            "021122334455",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seeded_address_is_local_and_unicast() {
        assert_eq!(MacAddr::local([0xff; 6]).0[0] & 0x03, 0x02);
    }
}
