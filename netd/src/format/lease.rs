//! `Lease`: a node's claim on a subnet, as it stands in etcd under `<prefix>/subnets/`.
//!
//! Key and value are flannel's to the byte (pkg/subnet/subnet.go, pkg/lease/lease.go), so that flannel and netd nodes
//! read each other. Two readings are stricter, because a key decides where packets go: the whole key must match
//! (flannel takes `1.10.5.1.0-24` for 10.5.1.0/24), and host bits must be zero.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use netstate::Prefix;
use serde::Serialize;
use serde_json::value::RawValue;

use super::go_json::Object;
use crate::plan::backend::BackendAttrs;
use cluster::Problem;

/// The name of a lease below `subnets/`: `172.7.21.0-24`, or `10.5.1.0-24&fc00:0:0:1::-64` on dual-stack nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubnetKey {
    /// The node's IPv4 subnet, /0 to /31.
    pub v4: Prefix,
    /// The node's IPv6 subnet, /0 to /127.
    pub v6: Option<Prefix>,
}

/// The text is no name of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidSubnetKey(String);

impl fmt::Display for InvalidSubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not the key of a lease such as 172.7.21.0-24 or 10.5.1.0-24&fc00:0:0:1::-64", self.0)
    }
}

impl std::error::Error for InvalidSubnetKey {}

impl SubnetKey {
    /// The key of an IPv4 subnet.
    #[must_use]
    pub(crate) const fn v4(subnet: Prefix) -> Self {
        Self { v4: subnet, v6: None }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.len())?;
        self.v6.map_or(Ok(()), |v6| write!(f, "&{}-{}", v6.addr(), v6.len()))
    }
}

impl FromStr for SubnetKey {
    type Err = InvalidSubnetKey;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSubnetKey(s.to_owned());
        let (v4, v6) = match s.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (s, None),
        };
        let v4 = subnet::<Ipv4Addr>(v4, 31).ok_or_else(invalid)?;
        let v6 = v6.map(|v6| subnet::<Ipv6Addr>(v6, 127).ok_or_else(invalid)).transpose()?;
        // A key is its own canonical spelling: two spellings of one subnet would be two leases.
        Some(Self { v4, v6 }).filter(|key| key.to_string() == s).ok_or_else(invalid)
    }
}

fn subnet<A: FromStr + Into<IpAddr>>(text: &str, longest: u8) -> Option<Prefix> {
    let (addr, len) = text.split_once('-')?;
    let digits = !len.is_empty() && len.len() <= 3 && len.bytes().all(|b| b.is_ascii_digit());
    let len: u8 = len.parse().ok().filter(|len| digits && *len <= longest)?;
    let addr: IpAddr = addr.parse::<A>().ok()?.into();
    Prefix::new(addr, len).ok().filter(|prefix| prefix.addr() == addr)
}

/// What the other nodes must know of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseAttrs {
    /// The node's address, reachable from the other nodes.
    pub public_ip: Ipv4Addr,
    /// Its IPv6 address, on dual-stack nodes.
    pub public_ipv6: Option<Ipv6Addr>,
    /// How the node wants to be reached.
    pub backend: BackendAttrs,
}

/// A lease as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The leased subnet.
    pub key: SubnetKey,
    /// Its holder.
    pub attrs: LeaseAttrs,
}

/// A lease with the age of its key in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredLease {
    /// The lease.
    pub lease: Lease,
    /// Revision of the store in which the key was made.
    pub created: i64,
    /// Revision in which it was last written.
    pub revision: i64,
    /// What ends the key, by the store's number; `None` for one that stays.
    pub token: Option<i64>,
}

/// flannel's JSON, field by field in flannel's order.
#[derive(Serialize)]
struct Wire {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: String,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Box<RawValue>>,
}

impl LeaseAttrs {
    /// The value of the key, to the byte as flannel writes it.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let wire = Wire {
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
            backend_type: self.backend.name().to_owned(),
            backend_data: self.backend.data(),
        };
        // Serializing text and numbers into a string has no way to fail.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Reads the value of a key, of any age and of any flannel: keys in any case, unknown ones ignored.
    ///
    /// # Errors
    /// Every problem of the value, each with its field.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Vec<Problem>> {
        let accepted = r#"a JSON object such as {"PublicIP":"10.4.7.21","PublicIPv6":null,"BackendType":"host-gw"}"#;
        let whole = |message: String| vec![Problem::new("value", message, accepted)];
        let text = str::from_utf8(value).map_err(|error| whole(error.to_string()))?;
        let mut object = Object::parse(text).map_err(|error| whole(error.to_string()))?;
        let mut problems = Vec::new();
        let public_ip = object.take::<Ipv4Addr>("PublicIP", "an IPv4 address", &mut problems);
        let public_ipv6 = object.take("PublicIPv6", "an IPv6 address or null", &mut problems);
        let kind = object.take("BackendType", "a backend such as vxlan", &mut problems).unwrap_or_default();
        let backend = BackendAttrs::take(kind, &mut object, &mut problems);
        match (public_ip, backend) {
            (Some(public_ip), Some(backend)) if problems.is_empty() => Ok(Self { public_ip, public_ipv6, backend }),
            (None, _) if problems.is_empty() => Err(vec![Problem::new("PublicIP", "missing", "an IPv4 address")]),
            _ => Err(problems),
        }
    }
}

/// Reads a key below `subnets/` with its value.
///
/// # Errors
/// What is wrong with the key or the value, with the accepted form.
pub(crate) fn read_lease(key: &str, value: &[u8]) -> Result<Lease, String> {
    let key: SubnetKey = key.parse().map_err(|error: InvalidSubnetKey| error.to_string())?;
    let texts = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Ok(Lease { key, attrs: LeaseAttrs::parse(value).map_err(texts)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_round_trip() {
        for text in ["10.12.13.0-24", "172.7.21.0-24", "10.12.13.0-24&fd00:12:13::-56", "10.5.1.0-24&fc00:0:0:1::-64"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_flannel_rejects_and_what_it_should_is_rejected() {
        // The first eleven are flannel's TestSubnetNodeInvalid.
        for text in [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "1.10.5.1.0-24",
            "10.12.13.7-24",
            "10.12.13.0-32",
            "10.12.13.0-+24",
            "10.12.13.0-024",
            "10.5.1.0-24&fc00:0:0:0001::-64",
            "10.5.1.0-24&FC00:0:0:1::-64",
            "10.5.1.0-24&fc00:0:0:1::-064",
            "10.5.1.0-24&fc00:0:0:1::0-64",
            "10.5.1.0-24&::ffff:10.5.1.0-120&",
            "10.5.1.0-24&",
            "10.5.1.0-24&10.5.2.0-24",
            "fc00:0:0:1::-64",
            "fc00:0:0:1::-64&10.5.1.0-24",
            " 10.12.13.0-24",
            "10.12.13.0 -24",
            "10.12.13.0-24/",
            "10.12.13.0-24\n",
            "010.12.13.0-24",
            "0x0a.12.13.0-24",
            "10.12.13.0--24",
            "10.12.13.0-",
            "10.12.13.0/24",
            "subnets",
            "",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text:?}");
        }
    }

    const VXLAN: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}"#;

    #[test]
    fn values_are_flannels_to_the_byte() {
        for text in [
            VXLAN,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
        ] {
            assert_eq!(LeaseAttrs::parse(text.as_bytes()).unwrap().render(), text);
        }
    }

    #[test]
    fn values_of_other_ages_are_read() {
        let old =
            br#"{"publicip":"192.0.2.1","BackendType":"vxlan","BackendData":{"VtepMAC":"02:11:22:33:44:55"},"X":1}"#;
        assert_eq!(LeaseAttrs::parse(old).unwrap().render(), VXLAN);
        let dual = br#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}"#;
        let attrs = LeaseAttrs::parse(dual).unwrap();
        assert_eq!(attrs.backend, BackendAttrs::Other("wireguard".to_owned()));
        assert!(attrs.public_ipv6.is_some());
    }

    #[test]
    fn bad_values_name_the_field() {
        for (value, field) in [
            (&b"junk"[..], "value"),
            (b"\xff", "value"),
            (b"null", "value"),
            (br#"{}"#, "PublicIP"),
            (br#"{"PublicIP":null}"#, "PublicIP"),
            (br#"{"PublicIP":"10.4.7"}"#, "PublicIP"),
            (br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan"}"#, "BackendData"),
            (br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":"x"}"#, "BackendData"),
            (br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":{"VNI":1}}"#, "BackendData.VtepMAC"),
            (
                br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":{"VtepMAC":"ff:ff:ff:ff:ff:ff"}}"#,
                "BackendData.VtepMAC",
            ),
        ] {
            let problems = LeaseAttrs::parse(value).unwrap_err();
            assert_eq!(problems[0].field, field, "{}", String::from_utf8_lossy(value));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic_and_every_accepted_key_round_trips(text in "\\PC{0,40}", key in "[0-9.&:a-f-]{0,30}") {
            let _ = LeaseAttrs::parse(text.as_bytes());
            let _ = crate::format::net_conf::NetConf::parse(&text);
            if let Ok(parsed) = key.parse::<SubnetKey>() {
                prop_assert_eq!(parsed.to_string().parse::<SubnetKey>(), Ok(parsed));
            }
        }
    }
}
