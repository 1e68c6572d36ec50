//! `Form`: what a scalar may be, and how it is read.
//!
//! Invariant: one form for each kind of value in the whole file; the accepted form is said by the one that reads it.

use std::net::IpAddr;

use netstate::Prefix;

/// A value that is written as one text.
pub(crate) trait Form: Sized {
    /// What is accepted, for a message.
    const ACCEPTED: &str;

    /// Reads it.
    ///
    /// # Errors
    /// Why it is not accepted; empty where the accepted form says it.
    fn read(text: &str) -> Result<Self, String>;
}

impl Form for u16 {
    const ACCEPTED: &str = "a port from 1 to 65535";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(|port| *port != 0).ok_or_else(String::new)
    }
}

impl Form for IpAddr {
    const ACCEPTED: &str = "an address of a host such as 10.4.7.21 or fd00:10:4:7::21";

    fn read(text: &str) -> Result<Self, String> {
        let address: Self = text.parse().map_err(|_| String::new())?;
        let broadcast = matches!(address, Self::V4(address) if address.is_broadcast());
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
            return Err("no other host reaches it".to_owned());
        }
        Ok(address)
    }
}

impl Form for Prefix {
    const ACCEPTED: &str = "a network such as 172.7.0.0/16 or fd00:7::/48";

    fn read(text: &str) -> Result<Self, String> {
        let prefix: Self = text.parse().map_err(|_| String::new())?;
        let first = text.split('/').next().and_then(|address| address.parse::<IpAddr>().ok());
        if first != Some(prefix.addr()) {
            return Err(format!("the network of this address is {prefix}"));
        }
        match SPECIAL.iter().find(|special| special.covers(&prefix) || prefix.covers(special)) {
            Some(special) => Err(format!("no host has such addresses, {special} is for other uses")),
            None => Ok(prefix),
        }
    }
}

/// This host, loopback, one link, groups, and IPv4 inside of IPv6 (RFC 6890): an API server takes no endpoint there.
const SPECIAL: [Prefix; 8] = [
    Prefix::v4_literal([0, 0, 0, 0], 8),
    Prefix::v4_literal([127, 0, 0, 0], 8),
    Prefix::v4_literal([169, 254, 0, 0], 16),
    Prefix::v4_literal([224, 0, 0, 0], 4),
    Prefix::v6_literal([0, 0, 0, 0, 0, 0, 0, 0], 96),
    Prefix::v6_literal([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    Prefix::v6_literal([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    Prefix::v6_literal([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_other_host_reaches_are_refused() {
        for text in ["0.0.0.0", "127.0.0.1", "::1", "::", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert_eq!(IpAddr::read(text), Err("no other host reaches it".to_owned()), "{text}");
        }
        for text in ["", "10.4.7", "10.4.7.021", "host", "10.4.7.21/24"] {
            assert_eq!(IpAddr::read(text), Err(String::new()), "{text}");
        }
        assert_eq!(IpAddr::read("10.4.7.21"), Ok("10.4.7.21".parse().unwrap()));
    }

    #[test]
    fn a_network_is_written_by_its_first_address() {
        assert_eq!(Prefix::read("172.7.21.0/16"), Err("the network of this address is 172.7.0.0/16".to_owned()));
        assert_eq!(Prefix::read("172.7.0.0/33"), Err(String::new()));
        assert_eq!(Prefix::read("172.7.0.0"), Err(String::new()));
        assert_eq!(Prefix::read("fd00:7::/48").unwrap().to_string(), "fd00:7::/48");
    }

    #[test]
    fn a_port_is_no_zero() {
        assert_eq!(u16::read("6443"), Ok(6443));
        for text in ["0", "65536", "-1", "6443 ", "https"] {
            assert!(u16::read(text).is_err(), "{text}");
        }
    }
}
