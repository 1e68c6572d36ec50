//! WireGuard devices and their peers: keys, end points, and which addresses are whose. No counters, no sessions.
//!
//! Invariant: a secret is in no text. Private and preshared keys have no `Display`, and their `Debug` hides them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{IfName, Prefix};

/// Bytes of a key (Curve25519, RFC 7748 §5).
pub const KEY_LEN: usize = 32;

/// The text is not the base64 of 32 bytes. It may be a secret, so it is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidKey;

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a key: 44 characters of base64 are needed, as `wg genkey` and `wg genpsk` print them")
    }
}

impl std::error::Error for InvalidKey {}

fn decode(text: &str) -> Result<[u8; KEY_LEN], InvalidKey> {
    let bytes = STANDARD.decode(text).map_err(|_| InvalidKey)?;
    bytes.try_into().map_err(|_| InvalidKey)
}

/// Identifies a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_LEN]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(Self)
    }
}

/// A device's identity.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_LEN]);

/// What peers share beside their identities.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PresharedKey([u8; KEY_LEN]);

macro_rules! secret {
    ($name:ident) => {
        impl $name {
            /// The key of these bytes.
            #[must_use]
            pub const fn new(bytes: [u8; KEY_LEN]) -> Self {
                Self(bytes)
            }

            /// The bytes, for the kernel or a file that nobody else can read.
            #[must_use]
            pub const fn expose(&self) -> &[u8; KEY_LEN] {
                &self.0
            }

            /// The text, for a file that nobody else can read.
            #[must_use]
            pub fn expose_text(&self) -> String {
                STANDARD.encode(self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(hidden)"))
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, InvalidKey> {
                decode(text).map(Self)
            }
        }
    };
}

secret!(PrivateKey);
secret!(PresharedKey);

/// How a device is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its identity; an observed device may have none.
    pub public_key: Option<PublicKey>,
    /// UDP port that it receives on.
    pub listen_port: u16,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.public_key {
            Some(key) => write!(f, "public key {key}")?,
            None => f.write_str("no key")?,
        }
        write!(f, " port {}", self.listen_port)
    }
}

/// Where packets for a peer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// Nowhere, until it sends something. As a desired value: wherever.
    Open,
    /// To this address.
    At(SocketAddr),
    /// Observed only: to an address that the peer itself, alive, last sent from. `from` is what had been set, when known.
    Roamed {
        /// Where it is.
        to: SocketAddr,
        /// Where it was set to be.
        from: Option<SocketAddr>,
    },
}

impl Endpoint {
    /// True when packets that shall go to `want` go where they should: a peer that roamed is not called back.
    #[must_use]
    pub fn satisfies(&self, want: &Self) -> bool {
        match (self, want) {
            (_, Self::Open) => true,
            (Self::Roamed { to, from }, Self::At(want)) => to == want || from.is_none_or(|from| from == *want),
            (have, want) => have == want,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("endpoint open"),
            Self::At(addr) => write!(f, "endpoint {addr}"),
            Self::Roamed { to, .. } => write!(f, "endpoint {to} (roamed)"),
        }
    }
}

/// How a peer is reached, and what it may send.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Where packets for it go.
    pub endpoint: Endpoint,
    /// Addresses that are its own: what leads there is encrypted for it, and it may send from them only.
    /// Some 2,000 fit into one message to the kernel.
    pub allowed: BTreeSet<Prefix>,
    /// What this device and the peer share, if anything.
    pub preshared: Option<PresharedKey>,
    /// Seconds between packets that keep a NAT's memory; 0 for none.
    pub keepalive: u16,
}

impl Peer {
    /// True when a peer that is `self` needs no change to be `want`.
    #[must_use]
    pub fn satisfies(&self, want: &Self) -> bool {
        self.endpoint.satisfies(&want.endpoint)
            && self.allowed == want.allowed
            && self.preshared == want.preshared
            && self.keepalive == want.keepalive
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} allowed", self.endpoint)?;
        for (index, prefix) in self.allowed.iter().enumerate() {
            write!(f, "{}{prefix}", if index == 0 { " " } else { "," })?;
        }
        if self.preshared.is_some() {
            f.write_str(" psk (hidden)")?;
        }
        match self.keepalive {
            0 => Ok(()),
            seconds => write!(f, " keepalive {seconds}"),
        }
    }
}

/// Identifies a row. Devices sort first, so that they are set before their peers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A device.
    Device(IfName),
    /// A peer of the device.
    Peer(IfName, PublicKey),
}

impl RowKey {
    /// The device that the row is or belongs to.
    #[must_use]
    pub const fn link(&self) -> &IfName {
        match self {
            Self::Device(link) | Self::Peer(link, _) => link,
        }
    }
}

impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(link) => link.fmt(f),
            Self::Peer(link, key) => write!(f, "{link} peer {key}"),
        }
    }
}

/// The rest of a row: of the kind that its key says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// Of a device.
    Device(Device),
    /// Of a peer.
    Peer(Peer),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => device.fmt(f),
            Self::Peer(peer) => peer.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_the_base64_of_32_bytes_and_nothing_else() {
        let key: PublicKey = TEXT.parse().unwrap();
        assert_eq!((key.0[0], key.0[31]), (0xc5, 0x38));
        assert_eq!(key.to_string(), TEXT);
        for bad in ["", "x", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg", "AAAA", &TEXT.repeat(2)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(InvalidKey), "{bad:?}");
        }
        assert!(!InvalidKey.to_string().contains("xTIB"));
    }

    #[test]
    fn secrets_are_in_no_text() {
        let (private, shared): (PrivateKey, PresharedKey) = (TEXT.parse().unwrap(), TEXT.parse().unwrap());
        let peer = Peer {
            endpoint: Endpoint::At(at("10.4.7.22:51820")),
            allowed: ["172.7.22.0/24".parse().unwrap(), "fd00:7:22::/64".parse().unwrap()].into(),
            preshared: Some(shared),
            keepalive: 25,
        };
        assert_eq!(
            peer.to_string(),
            "endpoint 10.4.7.22:51820 allowed 172.7.22.0/24,fd00:7:22::/64 psk (hidden) keepalive 25"
        );
        for text in [format!("{private:?}"), format!("{shared:?}"), format!("{peer:?}"), peer.to_string()] {
            assert!(text.contains("hidden") && !text.contains("197, 50") && !text.contains("xTIB"), "{text}");
        }
        assert_eq!(shared.expose_text(), TEXT);
    }

    #[test]
    fn peer_that_roamed_stays_until_it_is_wanted_elsewhere() {
        let (here, there, third) = (at("10.4.7.22:51820"), at("203.0.113.9:40000"), at("10.4.7.99:51820"));
        let want = Endpoint::At(here);
        assert!(Endpoint::At(here).satisfies(&want) && !Endpoint::At(there).satisfies(&want));
        assert!(!Endpoint::Open.satisfies(&want) && Endpoint::At(there).satisfies(&Endpoint::Open));
        let roamed = Endpoint::Roamed { to: there, from: Some(here) };
        assert!(roamed.satisfies(&want));
        assert!(!roamed.satisfies(&Endpoint::At(third)), "its lease names another address now");
        assert!(roamed.satisfies(&Endpoint::At(there)), "its lease names where it is");
        assert!(Endpoint::Roamed { to: there, from: None }.satisfies(&want), "what was set is not known");
    }

    #[test]
    fn devices_sort_before_all_peers() {
        let link = |name: &str| IfName::new(name).unwrap();
        let peer = RowKey::Peer(link("flannel-wg"), PublicKey([0; 32]));
        assert!(RowKey::Device(link("flannel-wg-v6")) < peer);
        assert_eq!(peer.link(), &link("flannel-wg"));
    }
}
