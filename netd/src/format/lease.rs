//! `Lease`: a node's claim on a subnet of each family, as it stands in etcd under `<prefix>/subnets/`.
//!
//! Key and value are flannel's to the byte (pkg/subnet/subnet.go, pkg/lease/lease.go), so that flannel and netd nodes
//! read each other. Two readings are stricter, because a key decides where packets go: the whole key must match
//! (flannel takes `1.10.5.1.0-24` for 10.5.1.0/24), and host bits must be zero. One is milder: what is wrong with one
//! family takes nothing from the other.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use netstate::Prefix;
use netstate::family::{IpFamily, PerFamily};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::go_json::Object;
use crate::plan::backend::BackendAttrs;
use cluster::Problem;
use cluster::problem::elided;

/// The name of a lease below `subnets/`: `172.7.21.0-24`, `10.5.1.0-24&fc00:0:0:1::-64` of a node with both families,
/// `0.0.0.0-0&fc00:0:0:1::-64` of one with IPv6 only. At least one family has a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubnetKey(PerFamily<Option<Prefix>>);

/// The text is no name of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InvalidSubnetKey(String);

impl fmt::Display for InvalidSubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not the key of a lease such as 172.7.21.0-24 or 10.5.1.0-24&fc00:0:0:1::-64", self.0)
    }
}

impl std::error::Error for InvalidSubnetKey {}

/// What flannel writes for the subnet of IPv4 of a node that has IPv6 only.
const NO_IPV4: &str = "0.0.0.0-0";

impl SubnetKey {
    /// The first of all keys in their order.
    pub(crate) const FIRST: Self = Self(PerFamily::new(None, Some(IpFamily::V6.any())));

    /// The key of one subnet.
    #[cfg(test)]
    pub(crate) fn of(subnet: Prefix) -> Self {
        Self(PerFamily::only(subnet.family(), subnet))
    }

    /// The key of the subnets that are there; `None` without any.
    #[must_use]
    pub(crate) fn new(subnets: PerFamily<Option<Prefix>>) -> Option<Self> {
        (!subnets.is_empty()).then_some(Self(subnets))
    }

    /// The node's subnets: /0 to /31 of IPv4, /0 to /127 of IPv6.
    #[must_use]
    pub(crate) const fn subnets(&self) -> PerFamily<Option<Prefix>> {
        self.0
    }

    /// The same as a sequence.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> + use<> {
        self.0.into_iter().filter_map(|(_, subnet)| subnet)
    }

    /// The node's subnet of one family.
    #[must_use]
    pub(crate) const fn get(&self, family: IpFamily) -> Option<Prefix> {
        *self.0.get(family)
    }

    /// For an operator: `172.7.21.0/24`, the families apart by a comma.
    #[must_use]
    pub(crate) fn list(&self) -> String {
        self.0.list()
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.v4 {
            Some(v4) => write!(f, "{}-{}", v4.addr(), v4.len())?,
            None => f.write_str(NO_IPV4)?,
        }
        self.0.v6.map_or(Ok(()), |v6| write!(f, "&{}-{}", v6.addr(), v6.len()))
    }
}

impl FromStr for SubnetKey {
    type Err = InvalidSubnetKey;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSubnetKey(s.to_owned());
        let (v4, v6) = match s.split_once('&') {
            Some((NO_IPV4, v6)) => (None, Some(v6)),
            Some((v4, v6)) => (Some(v4), Some(v6)),
            None => (Some(s), None),
        };
        let v4 = v4.map(|v4| subnet::<Ipv4Addr>(v4, 31).ok_or_else(invalid)).transpose()?;
        let v6 = v6.map(|v6| subnet::<Ipv6Addr>(v6, 127).ok_or_else(invalid)).transpose()?;
        // A key is its own canonical spelling: two spellings of one subnet would be two leases.
        Some(Self(PerFamily::new(v4, v6))).filter(|key| key.to_string() == s).ok_or_else(invalid)
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
    /// The node's addresses, reachable from the other nodes; at least one.
    pub public_ips: PerFamily<Option<IpAddr>>,
    /// How the node wants to be reached.
    pub backend: BackendAttrs,
}

/// A lease as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The leased subnets.
    pub key: SubnetKey,
    /// Their holder.
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
    public_ip: IpAddr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: String,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Box<RawValue>>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<Box<RawValue>>,
}

/// The members of a lease with the data of its backend.
pub(crate) const DATA: PerFamily<&str> = PerFamily::new("BackendData", "BackendV6Data");

/// The members with the node's addresses.
pub(crate) const PUBLIC: PerFamily<&str> = PerFamily::new("PublicIP", "PublicIPv6");

impl LeaseAttrs {
    /// The value of the key, to the byte as flannel writes it.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let wire = Wire {
            public_ip: self.public_ips.v4.unwrap_or(IpFamily::V4.unspecified()),
            public_ipv6: self.public_ips.v6,
            backend_type: self.backend.name().to_owned(),
            backend_data: self.backend.data(IpFamily::V4),
            backend_v6_data: self.backend.data(IpFamily::V6),
        };
        // Serializing text and numbers into a string has no way to fail.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Reads the value of a key with subnets of `families`, of any age and of any flannel: keys in any case, unknown
    /// ones ignored. A family whose members cannot be read is left out.
    ///
    /// # Errors
    /// Every problem of the value, each with its field, when none of `families` can be read.
    pub(crate) fn parse(value: &[u8], families: impl Iterator<Item = IpFamily>) -> Result<Self, Vec<Problem>> {
        let accepted = r#"a JSON object such as {"PublicIP":"10.4.7.21","PublicIPv6":null,"BackendType":"host-gw"}"#;
        let whole = |message: String| vec![Problem::new("value", message, accepted)];
        let text = str::from_utf8(value).map_err(|error| whole(error.to_string()))?;
        let mut object = Object::parse(text).map_err(|error| whole(error.to_string()))?;
        let mut problems = PerFamily::<Vec<Problem>>::default();
        let v4 = public_ip::<Ipv4Addr>(IpFamily::V4, "an IPv4 address", &mut object, &mut problems);
        let v6 = public_ip::<Ipv6Addr>(IpFamily::V6, "an IPv6 address", &mut object, &mut problems);
        let mut of_kind = Vec::new();
        let kind = object.take("BackendType", "a backend such as vxlan", &mut of_kind).unwrap_or_default();
        let backend = BackendAttrs::take(kind, &mut object, &mut problems);
        // What flannel writes for a node without IPv4 is no address of IPv4.
        let v4 = v4.filter(|v4| !v4.is_unspecified() || v6.is_none());
        let (mut bad, mut refused) = (of_kind, Vec::new());
        for family in families {
            if bad.is_empty() && problems.get(family).is_empty() {
                return Ok(Self { public_ips: PerFamily::new(v4, v6), backend });
            }
            refused.append(problems.get_mut(family));
        }
        bad.append(&mut refused);
        Err(bad)
    }

    /// The node's address of one family.
    ///
    /// # Errors
    /// When the lease names none.
    pub(crate) fn public_ip(&self, family: IpFamily) -> Result<IpAddr, String> {
        let missing = || format!("{} has no usable {}", self.public_ips.list(), PUBLIC.get(family));
        self.public_ips.get(family).ok_or_else(missing)
    }

    /// True when both name the same address of a node.
    #[must_use]
    pub(crate) fn is_node_of(&self, other: &PerFamily<Option<IpAddr>>) -> bool {
        let pairs = self.public_ips.zip(*other);
        pairs.values().any(|(own, other)| own.is_some_and(|own| !own.is_unspecified() && Some(own) == *other))
    }
}

fn public_ip<A: DeserializeOwned + Into<IpAddr>>(
    family: IpFamily,
    accepted: &str,
    object: &mut Object,
    problems: &mut PerFamily<Vec<Problem>>,
) -> Option<IpAddr> {
    let (field, problems) = (PUBLIC.get(family), problems.get_mut(family));
    let found = object.take::<A>(field, accepted, problems);
    if found.is_none() && problems.is_empty() {
        problems.push(Problem::new(*field, "missing", accepted));
    }
    found.map(Into::into)
}

/// Reads a key below `subnets/` with its value.
///
/// # Errors
/// What is wrong with the key or the value, with the accepted form.
pub(crate) fn read_lease(key: &str, value: &[u8]) -> Result<Lease, String> {
    let key: SubnetKey = key.parse().map_err(|error: InvalidSubnetKey| elided(error.to_string()))?;
    let texts = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Ok(Lease { key, attrs: LeaseAttrs::parse(value, key.subnets().families()).map_err(texts)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lease_is_small_whatever_its_backend_could_say() {
        // 10,000 of them are kept for as long as the daemon runs.
        assert!(size_of::<StoredLease>() <= 144, "{} bytes", size_of::<StoredLease>());
    }

    #[test]
    fn keys_round_trip() {
        for (text, subnets) in [
            ("10.12.13.0-24", "10.12.13.0/24"),
            ("172.7.21.0-24", "172.7.21.0/24"),
            ("0.0.0.0-0", "0.0.0.0/0"),
            ("10.12.13.0-24&fd00:12:13::-56", "10.12.13.0/24,fd00:12:13::/56"),
            ("10.5.1.0-24&fc00:0:0:1::-64", "10.5.1.0/24,fc00:0:0:1::/64"),
            ("0.0.0.0-0&fc00:0:0:1::-64", "fc00:0:0:1::/64"),
        ] {
            let key: SubnetKey = text.parse().unwrap();
            assert_eq!((key.to_string().as_str(), key.list().as_str()), (text, subnets));
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
            "&fc00:0:0:1::-64",
            "0.0.0.0-0&10.5.2.0-24",
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

    fn parse(value: &[u8]) -> Result<LeaseAttrs, Vec<Problem>> {
        LeaseAttrs::parse(value, [IpFamily::V4].into_iter())
    }

    const VXLAN: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}}"#;

    #[test]
    fn values_are_flannels_to_the_byte() {
        for text in [
            VXLAN,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().render(), text);
        }
        let v6 = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}}"#;
        let lease = read_lease("0.0.0.0-0&fc00:0:0:1::-64", v6.as_bytes()).unwrap();
        assert_eq!((lease.attrs.render().as_str(), lease.attrs.public_ips.v4), (v6, None));
    }

    #[test]
    fn what_is_wrong_with_one_family_takes_nothing_from_the_other() {
        let good = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}}"#;
        let read = |key: &str, value: &str| read_lease(key, value.as_bytes());
        for bad in [
            good.replace(r#""2001:db8::1""#, r#""192.0.2.9""#),
            good.replace(r#""2001:db8::1""#, "7"),
            good.replace("02:11:22:33:44:66", "junk"),
            good.replace(r#""BackendV6Data":{"VNI":1"#, r#""BackendV6Data":{"VNI":-1"#),
            good.replace(r#""VtepMAC":"02:11:22:33:44:66""#, r#""Other":1"#),
        ] {
            for key in ["10.5.1.0-24", "10.5.1.0-24&fc00:0:0:1::-64"] {
                let lease = read(key, &bad).unwrap();
                assert_eq!(
                    (lease.attrs.public_ips.v4, lease.attrs.backend.macs().v4.is_some()),
                    ("192.0.2.1".parse().ok(), true)
                );
            }
            assert!(read("0.0.0.0-0&fc00:0:0:1::-64", &bad).is_err(), "{bad}");
        }
        let v6 = good.replace("192.0.2.1", "junk");
        assert!(read("10.5.1.0-24", &v6).unwrap_err().contains("PublicIP: \"junk\""));
        assert_eq!(read("10.5.1.0-24&fc00:0:0:1::-64", &v6).unwrap().attrs.public_ips.list(), "2001:db8::1");
    }

    #[test]
    fn values_of_other_ages_are_read() {
        let old =
            br#"{"publicip":"192.0.2.1","BackendType":"vxlan","BackendData":{"VtepMAC":"02-11-22-33-44-55"},"X":1}"#;
        assert_eq!(parse(old).unwrap().render(), VXLAN.replace(r#""VNI":1,"#, ""));
        let dual =
            br#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"ipsec","BackendData":{"X":"x"}}"#;
        let attrs = parse(dual).unwrap();
        assert_eq!(attrs.backend, BackendAttrs::Other("ipsec".to_owned()));
        assert!(attrs.public_ips.is_dual());
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
            (
                br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":{"VtepMAC":"00:00:00:00:00:00"}}"#,
                "BackendData.VtepMAC",
            ),
        ] {
            let problems = parse(value).unwrap_err();
            assert_eq!(problems[0].field, field, "{}", String::from_utf8_lossy(value));
            assert_eq!(problems.len(), 1, "said once: {problems:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic_and_every_accepted_key_round_trips(text in "\\PC{0,40}", key in "[0-9.&:a-f-]{0,30}") {
            let _ = parse(text.as_bytes());
            let _ = crate::format::net_conf::NetConf::parse(&text);
            if let Ok(parsed) = key.parse::<SubnetKey>() {
                prop_assert_eq!(parsed.to_string().parse::<SubnetKey>(), Ok(parsed));
            }
        }
    }
}
