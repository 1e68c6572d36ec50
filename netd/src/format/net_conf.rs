//! net-conf.json: the Pod network, how it is cut into subnets, and the backend that joins them.
//!
//! Format, defaults and bounds are flannel's (pkg/subnet/config.go), so that one text configures both. Two
//! divergences, on purpose: without `Backend` flannel takes the `udp` backend, which nobody wants any more, and its
//! own documentation says `vxlan`; here it is `vxlan`, with a note. And every problem is reported at once. Invariant: what
//! belongs to a family that is off is read and counts for nothing, as in flannel.

mod pool;

use std::collections::BTreeSet;
use std::fmt;

use netstate::family::PerFamily;
use netstate::{IfName, IpFamily, Prefix};
use serde_json::Value;

use super::backend;
use super::go_json::{BOOL, Object};
use crate::choose::policy::Policy;
use crate::plan::backend::Backend;
use cluster::Problem;

pub(crate) use self::pool::Pool;
use self::pool::{Fields, Subnets, take_pool};

/// The Pod network of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// Pod addresses of each family that the cluster has.
    pub pools: PerFamily<Option<Pool>>,
    /// How nodes reach each other's subnets.
    pub backend: Backend,
    /// How Pods are seen outside.
    pub egress: Egress,
    /// How nodes choose their subnets (`SubnetAssignment`, this program's own addition), where their command lines do
    /// not say so.
    pub assignment: Option<Vec<Policy>>,
    /// Established flows take the short way of a flowtable (`Flowtable`, this program's own addition).
    pub flowtable: bool,
}

/// How Pods are seen outside, where `--ip-masq` is on: this program's own additions to the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Egress {
    /// Pods are seen as their node (`MasqueradeIPv4`, `MasqueradeIPv6`).
    pub masquerade: PerFamily<bool>,
    /// Networks in which they keep their own address (`NonMasqueradeCIDRs`).
    pub exempt: PerFamily<Vec<Prefix>>,
}

/// A network with remarks about its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetConf {
    /// What the text says.
    pub network: Network,
    /// For the log: ignored keys, defaults that differ from flannel's.
    pub notes: Vec<String>,
}

impl Network {
    /// The Pod addresses of the family of `prefix`, if the cluster has any.
    #[must_use]
    pub(crate) const fn pool(&self, prefix: &Prefix) -> Option<&Pool> {
        self.pools.get(prefix.family()).as_ref()
    }

    /// True when `prefix` is a part of the Pod network, of whatever length, and not all of it.
    #[must_use]
    pub(crate) fn has_subnet(&self, prefix: &Prefix) -> bool {
        self.pool(prefix).is_some_and(|pool| pool.has_subnet(prefix))
    }

    /// The devices that carry its tunnels.
    #[must_use]
    pub(crate) fn devices(&self) -> BTreeSet<IfName> {
        self.pools.families().filter_map(|family| self.backend.device(family)).collect()
    }

    /// All Pod addresses, by family.
    pub(crate) fn networks(&self) -> impl Iterator<Item = Prefix> {
        self.pools.present().map(|(_, pool)| pool.network)
    }
}

impl fmt::Display for Network {
    /// `172.7.0.0/16`, the families apart by a comma.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.networks().map(|network| network.to_string()).collect();
        f.write_str(&texts.join(","))
    }
}

impl Egress {
    /// What of it counts in a network of these families: Pods have no address of another, and exempt of nothing is nothing.
    #[must_use]
    pub(crate) fn of(&self, pools: &PerFamily<Option<Pool>>) -> Self {
        let of = |family| *self.masquerade.get(family) && pools.get(family).is_some();
        let masquerade = PerFamily::new(of(IpFamily::V4), of(IpFamily::V6));
        let exempt = |family| if of(family) { self.exempt.get(family).clone() } else { Vec::new() };
        Self { masquerade, exempt: PerFamily::new(exempt(IpFamily::V4), exempt(IpFamily::V6)) }
    }
}

impl fmt::Display for Egress {
    /// `with --ip-masq Pods are seen as their node by IPv4 and IPv6, but not in 10.0.0.0/8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families: Vec<String> =
            self.masquerade.iter().filter(|(_, on)| **on).map(|(family, _)| family.to_string()).collect();
        let exempt: Vec<String> = self.exempt.iter().flat_map(|(_, list)| list).map(ToString::to_string).collect();
        match families.as_slice() {
            [] => f.write_str("Pods are seen with their own addresses outside")?,
            families => write!(f, "with --ip-masq Pods are seen outside as their node, by {}", families.join(" and "))?,
        }
        if exempt.is_empty() || families.is_empty() { Ok(()) } else { write!(f, ", but not in {}", exempt.join(", ")) }
    }
}

impl NetConf {
    /// Reads the text of net-conf.json or of the key `<prefix>/config`, out of which nodes take their subnets.
    ///
    /// # Errors
    /// Every problem of the text, each with its field.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        Self::with(text, Subnets::Chosen)
    }

    /// Reads the text of net-conf.json where somebody else gives the nodes their subnets, as the controller-manager of Kubernetes:
    /// what it says of them counts for nothing, as with flannel's kube subnet manager.
    ///
    /// # Errors
    /// Every problem of the text, each with its field.
    pub(crate) fn parse_assigned(text: &str) -> Result<Self, Vec<Problem>> {
        Self::with(text, Subnets::Assigned)
    }

    fn with(text: &str, subnets: Subnets) -> Result<Self, Vec<Problem>> {
        let accepted = r#"a JSON object such as {"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let mut object =
            Object::parse(text).map_err(|error| vec![Problem::new("net-conf", error.to_string(), accepted)])?;
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        let enabled = enabled(&mut object, &mut problems);
        let pools = PerFamily::from_fn(|family| {
            let fields = Fields::of(family);
            if *enabled.get(family) {
                return take_pool(&fields, subnets, &mut object, &mut problems, &mut notes);
            }
            // flannel reads and ignores what belongs to a family that is off.
            fields.all().into_iter().for_each(|field| drop(object.take_raw(field)));
            None
        });
        let assignment = take_assignment(&mut object, &mut problems);
        let egress = take_egress(&mut object, &mut problems, &mut notes);
        let flowtable = object.take("Flowtable", BOOL, &mut problems).unwrap_or(false);
        let backend = backend::take(&mut object, &mut problems, &mut notes);
        if object.take("EnableNFTables", BOOL, &mut problems) == Some(false) {
            notes.push("EnableNFTables: false is ignored: netd writes nftables rules only".to_owned());
        }
        notes.extend(object.rest().iter().map(|key| format!("{key}: unknown key, ignored")));
        problems.extend(backend.as_ref().and_then(|backend| backend.refuses_families(pools.families())));
        match backend {
            Some(backend) if problems.is_empty() => {
                Ok(Self { network: Network { pools, backend, egress, assignment, flowtable }, notes })
            }
            _ => Err(problems),
        }
    }
}

fn take_assignment(object: &mut Object, problems: &mut Vec<Problem>) -> Option<Vec<Policy>> {
    let text: String = object.take("SubnetAssignment", Policy::ACCEPTED, problems)?;
    let refuse = |found: Vec<String>| {
        let refused = found.into_iter().map(|found| Problem::new("SubnetAssignment", found, Policy::ACCEPTED));
        problems.extend(refused);
    };
    Policy::parse_list(&text).map_err(refuse).ok()
}

fn take_egress(object: &mut Object, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Egress {
    let fields = PerFamily::new("MasqueradeIPv4", "MasqueradeIPv6");
    let masquerade = fields.map(|_, field| object.take(field, BOOL, problems).unwrap_or(true));
    let accepted = r#"a list of networks such as ["10.0.0.0/8","fd00:10::/32"]"#;
    let items: Vec<Value> = object.take("NonMasqueradeCIDRs", accepted, problems).unwrap_or_default();
    let mut networks = Vec::new();
    for item in items {
        match item.as_str().and_then(|text| text.parse::<Prefix>().ok()) {
            Some(network) => networks.push(network),
            // One that nobody can read takes none of the others down, and the network not at all.
            None => notes.push(format!("NonMasqueradeCIDRs: {item} is left out; accepted: {accepted}")),
        }
    }
    Egress { masquerade, exempt: PerFamily::partition(networks, Prefix::family) }
}

fn enabled(object: &mut Object, problems: &mut Vec<Problem>) -> PerFamily<bool> {
    let v4 = object.take("EnableIPv4", BOOL, problems).unwrap_or(true);
    let v6 = object.take("EnableIPv6", BOOL, problems).unwrap_or(false);
    if !v4 && !v6 {
        problems.push(Problem::new("EnableIPv4", "false, and IPv6 is off: there would be no Pod network", "true"));
    }
    PerFamily::new(v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::Vxlan;

    fn parse(text: &str) -> Pool {
        NetConf::parse(text).unwrap().network.pools.v4.unwrap()
    }

    fn refused(text: &str) -> Vec<String> {
        NetConf::parse(text).unwrap_err().iter().map(Problem::to_string).collect()
    }

    #[test]
    fn network_that_nobody_can_read_is_left_out_of_the_list_and_named() {
        let text = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"},"NonMasqueradeCIDRs":["10.0.0.0/8","10.0.0.0",7,"fd00:10::/32"],"flowtable":true}"#;
        let conf = NetConf::parse(text).unwrap();
        assert_eq!(conf.network.egress.exempt.v4, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(conf.network.egress.exempt.v6, ["fd00:10::/32".parse().unwrap()]);
        assert_eq!(conf.notes.len(), 2, "{:?}", conf.notes);
        assert!(
            conf.notes[0].starts_with("NonMasqueradeCIDRs: \"10.0.0.0\" is left out; accepted: "),
            "{:?}",
            conf.notes
        );
        assert!(conf.network.flowtable && !NetConf::parse(r#"{"Network":"172.7.0.0/16"}"#).unwrap().network.flowtable);
    }

    #[test]
    fn flannels_defaults_hold_for_every_size_of_network() {
        for (network, len, min, max) in [
            ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
            ("10.244.0.0/16", 24, "10.244.1.0", "10.244.255.0"),
            ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
            ("10.244.0.0/23", 25, "10.244.0.128", "10.244.1.128"),
            ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
            ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ] {
            let parsed = parse(&format!(r#"{{"network":"{network}"}}"#));
            assert_eq!(parsed.subnet_len, len, "{network}");
            assert_eq!(parsed.subnet_min.addr().to_string(), min, "{network}");
            assert_eq!(parsed.subnet_max.addr().to_string(), max, "{network}");
        }
    }

    fn parse_v6(text: &str) -> Pool {
        let network = NetConf::parse(text).unwrap().network;
        assert_eq!(network.pools.v4, None);
        network.pools.v6.unwrap()
    }

    #[test]
    fn flannels_defaults_hold_for_every_size_of_ipv6_network() {
        for (network, len, min, max) in [
            ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
            ("fd00:7::/62", 64, "fd00:7:0:1::", "fd00:7:0:3::"),
            ("fd00:7::/63", 65, "fd00:7:0:0:8000::", "fd00:7:0:1:8000::"),
            ("fd00:7::/124", 126, "fd00:7::4", "fd00:7::c"),
            ("fd00::/8", 64, "fd00:0:0:1::", "fdff:ffff:ffff:ffff::"),
        ] {
            let parsed = parse_v6(&format!(r#"{{"enableipv4":false,"enableipv6":true,"ipv6network":"{network}"}}"#));
            assert_eq!(parsed.subnet_len, len, "{network}");
            assert_eq!(parsed.subnet_min.addr().to_string(), min, "{network}");
            assert_eq!(parsed.subnet_max.addr().to_string(), max, "{network}");
        }
        let set = parse_v6(
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:3::","IPv6SubnetMax":"fc00:0:0:9::","IPv6SubnetLen":65}"#,
        );
        assert_eq!(
            (set.subnet_min.to_string(), set.subnet_max.to_string()),
            ("fc00:0:0:3::/65".to_owned(), "fc00:0:0:9::/65".to_owned())
        );
    }

    #[test]
    fn families_are_those_that_are_enabled() {
        let both = r#"{"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48","EnableIPv6":true}"#;
        assert_eq!(NetConf::parse(both).unwrap().network.to_string(), "10.244.0.0/16,fd00:244::/48");
        for (text, families) in [
            (both.replace("true", "false"), "10.244.0.0/16"),
            (both.replace("true", "null"), "10.244.0.0/16"),
            (both.replace(r#""EnableIPv6""#, r#""EnableIPv4":false,"EnableIPv6""#), "fd00:244::/48"),
            // What belongs to a family that is off is not even read.
            (both.replace("fd00:244::/48", "junk").replace("true", "false"), "10.244.0.0/16"),
        ] {
            let conf = NetConf::parse(&text).unwrap();
            assert_eq!(conf.network.to_string(), families, "{text}");
            assert_eq!(conf.notes.len(), 1, "{:?}", conf.notes);
        }
    }

    #[test]
    fn every_option_of_flannel_is_read() {
        let text = r#"{"Network":"10.3.5.9/16","SubnetLen":28,"SubnetMin":"10.3.1.0","SubnetMax":"10.3.9.16",
            "Backend":{"type":"VXLAN","vni":7,"PORT":4789,"Mtu":9000,"GBP":true,"Learning":true,"DirectRouting":true,"MacPrefix":"0E-2A"}}"#;
        let conf = NetConf::parse(text).unwrap();
        assert_eq!(conf.network.to_string(), "10.3.0.0/16");
        assert_eq!(conf.network.pools.v4.unwrap().subnet_max.to_string(), "10.3.9.16/28");
        let options = Vxlan { vni: 7, port: 4789, mtu: Some(9000), ..Vxlan::default() };
        let vxlan = Vxlan { gbp: true, learning: true, direct_routing: true, ..options };
        assert_eq!(conf.network.backend, Backend::Vxlan(vxlan));
        assert_eq!(conf.notes, Vec::<String>::new());
    }

    #[test]
    fn an_absent_backend_is_vxlan_and_said_so() {
        let conf = NetConf::parse(r#"{"Network":"172.7.0.0/16","Extra":1,"Backend":null}"#).unwrap();
        assert_eq!(conf.network.backend.name(), "vxlan");
        assert_eq!(conf.notes.len(), 2);
        assert!(conf.notes[0].contains("flannel would take udp"));
        assert!(conf.notes[1].starts_with("Extra"));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_field() {
        let problems = refused(
            r#"{"Network":"172.7.0.0","SubnetLen":"24","EnableIPv6":true,"Backend":{"Type":"vxlan","VNI":16777216,"MTU":10,"Port":70000}}"#,
        );
        let fields: Vec<&str> = problems.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(fields, ["Network", "SubnetLen", "IPv6Network", "Backend.Port", "Backend.VNI", "Backend.MTU"]);
    }

    #[test]
    fn where_somebody_else_gives_subnets_out_nothing_is_asked_of_them() {
        let pools = |text: &str| NetConf::parse_assigned(text).map(|conf| (conf.network.to_string(), conf.notes));
        let plain = r#""Backend":{"Type":"vxlan"}"#;
        for network in ["10.244.0.0/16", "10.244.0.0/23", "10.244.0.0/24", "10.244.0.0/29"] {
            let text = format!(r#"{{"Network":"{network}",{plain}}}"#);
            assert_eq!(pools(&text).unwrap(), (network.to_owned(), vec![]));
            let pool = NetConf::parse_assigned(&text).unwrap().network.pools.v4.unwrap();
            assert!(pool.network.covers(&pool.subnet_min) && pool.network.covers(&pool.subnet_max), "{pool:?}");
        }
        let text = format!(r#"{{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/64",{plain}}}"#);
        assert_eq!(pools(&text).unwrap().0, "10.0.0.0/16,fd00::/64");
        let said = r#""SubnetLen":17,"SubnetMin":"10.9.0.0","SubnetMax":"10.8.0.0""#;
        let text = format!(r#"{{"Network":"10.0.0.0/16",{said},{plain}}}"#);
        let (network, notes) = pools(&text).unwrap();
        assert_eq!((network.as_str(), notes.len()), ("10.0.0.0/16", 3), "{notes:?}");
        assert!(notes[0].starts_with("SubnetLen: ignored"), "{notes:?}");
        for (text, field) in [
            (r#"{"Network":"10.0.0.0/16","SubnetLen":"24"}"#, "SubnetLen"),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":7}"#, "SubnetMin"),
            (r#"{"Network":"0.0.0.0/0"}"#, "Network"),
            (r#"{"SubnetLen":24}"#, "Network"),
        ] {
            assert_eq!(NetConf::parse_assigned(text).unwrap_err()[0].field, field, "flannel refuses it too: {text}");
        }
    }

    #[test]
    fn bounds_are_flannels() {
        for (text, part) in [
            (r#"{"Network":"10.0.0.0/29"}"#, "network is too small"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":31}"#, "SubnetLen must be less than /31"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":999}"#, "SubnetLen must be less than /31"),
            (r#"{"Network":"10.0.0.0/16","SubnetLen":17}"#, "at least four subnets"),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0"}"#, "not in the range"),
            (r#"{"Network":"10.0.0.0/16","SubnetMax":"10.0.9.1"}"#, "SubnetLen boundary"),
            (r#"{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0"}"#, "is after SubnetMax"),
            (r#"{"Network":null}"#, "null"),
            (r#"{"Network":"fc00::/48"}"#, "fc00::/48"),
            (r#"{"EnableIPv4":false}"#, "there would be no Pod network"),
            (r#"{"EnableIPv4":false,"EnableIPv6":true}"#, "IPv6Network: missing"),
            (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}"#, "IPv6Network: \"10.0.0.0/8\""),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
                "Minimum useful network prefix is /124",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}"#,
                "IPv6SubnetLen must be less than /127",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":49}"#,
                "at least four subnets",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fd00::"}"#,
                "not in the range",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan","VNI":10000}}"#,
                "Backend.VNI: 10000",
            ),
            (r#"{"Network":"0.0.0.0/0"}"#, "every address"),
            (r#"{"Network":"127.0.0.0/8"}"#, "no Pod is reached at the addresses of 127.0.0.0/8"),
            (r#"{"Network":"239.1.0.0/16"}"#, "no Pod is reached"),
            (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/64"}"#, "no Pod is reached"),
            (r#"{}"#, "missing"),
            (r#"{"Network":"10.0.0.0/16","Backend":{}}"#, "unknown backend type"),
            (r#"{"Network":"10.0.0.0/16","Backend":[]}"#, "an object"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}"#, "does not have"),
            (r#"{"Network":"10.0.0.0/16"} x"#, "trailing characters"),
            (r#"{"Network":"10.0.0.0/16","NonMasqueradeCIDRs":"10.0.0.0/8"}"#, "NonMasqueradeCIDRs"),
            (r#"{"Network":"10.0.0.0/16","Flowtable":"on"}"#, "Flowtable"),
            (r#"{"Network":"10.0.0.0/16","MasqueradeIPv4":"no"}"#, "MasqueradeIPv4"),
            (r#"{"Network":"10.0.0.0/16","SubnetAssignment":"node"}"#, "SubnetAssignment: \"node\" is no policy"),
            ("", "EOF"),
        ] {
            let problems = refused(text).join("\n");
            assert!(problems.contains(part), "{text}: {problems:?} lacks {part:?}");
        }
    }

    #[test]
    fn subnets_run_from_the_first_to_the_last_that_may_be_leased() {
        let network = parse(r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.20.0","SubnetMax":"172.7.23.0"}"#);
        let all: Vec<String> = network.subnets().map(|subnet| subnet.to_string()).collect();
        assert_eq!(all, ["172.7.20.0/24", "172.7.21.0/24", "172.7.22.0/24", "172.7.23.0/24"]);
        assert_eq!(network.subnet(21).unwrap().to_string(), "172.7.21.0/24");
        assert_eq!(network.subnet(24), None);
        assert_eq!(network.subnet(u128::MAX), None);
        assert!(!network.may_lease(&"172.7.21.0/25".parse().unwrap()));
    }

    #[test]
    fn the_last_subnet_of_the_address_space_ends_the_walk() {
        let network = parse(r#"{"Network":"255.255.255.0/24","SubnetLen":26}"#);
        assert_eq!(network.subnets().count(), 3);
    }
}
