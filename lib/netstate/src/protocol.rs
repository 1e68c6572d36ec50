//! `Protocol`: a transport protocol that Services, host ports and packet filters speak of.
//!
//! Invariant: a value is one of the three that the product serves; any other name or number is refused where it is read.

use std::fmt;
use std::str::FromStr;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IPPROTO_TCP, 6.
    Tcp,
    /// IPPROTO_UDP, 17.
    Udp,
    /// IPPROTO_SCTP, 132.
    Sctp,
}

/// The text names no protocol that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidProtocol(String);

impl fmt::Display for InvalidProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not one of tcp, udp, sctp", self.0)
    }
}

impl std::error::Error for InvalidProtocol {}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol's number in IP headers (IANA).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IP header's number, if it is one of ours.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The name in small letters, as the kernel's tools write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = InvalidProtocol;

    /// In small or capital letters: `tcp` in CNI's port mappings, `TCP` in Kubernetes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|protocol| text.eq_ignore_ascii_case(protocol.name()));
        named.ok_or_else(|| InvalidProtocol(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_the_protocol() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::from_number(protocol.number()), Some(protocol));
            assert_eq!(protocol.to_string().to_uppercase().parse(), Ok(protocol));
        }
        assert_eq!(Protocol::from_number(1), None);
        assert_eq!("icmp".parse::<Protocol>().unwrap_err().to_string(), "\"icmp\" is not one of tcp, udp, sctp");
    }
}
