//! net-conf.json: the Pod network, how it is cut into subnets, and the backend that joins them.
//!
//! Format, defaults and bounds are flannel's (pkg/subnet/config.go), so that one text configures both. Two
//! divergences, on purpose: without `Backend` flannel takes the `udp` backend, which nobody wants any more, and its
//! own documentation says `vxlan`; here it is `vxlan`, with a note. And every problem is reported at once.
//! IPv6 has its place in the format but not yet in this program: `EnableIPv6` is refused, never half-done.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netstate::Prefix;
use netstate::family::{IpFamily, PerFamily};

use super::backend;
use super::go_json::{BOOL, Object};
use crate::plan::backend::Backend;
use cluster::Problem;

/// The Pod addresses of one family, and how they are cut into subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    /// All Pod addresses, /28 or larger.
    pub network: Prefix,
    /// Length of one node's subnet, from the network's length + 2 to 30.
    pub subnet_len: u8,
    /// The first subnet a node may get.
    pub subnet_min: Prefix,
    /// The last subnet a node may get.
    pub subnet_max: Prefix,
}

/// The Pod network of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// Pod addresses of each family that the cluster has.
    pub pools: PerFamily<Option<Pool>>,
    /// How nodes reach each other's subnets.
    pub backend: Backend,
}

/// A network with remarks about its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetConf {
    /// What the text says.
    pub network: Network,
    /// For the log: ignored keys, defaults that differ from flannel's.
    pub notes: Vec<String>,
}

impl Pool {
    /// The subnet with number `n`, counted from the network's first; `None` when it is not between the first and the
    /// last that a node may get.
    #[must_use]
    pub(crate) fn subnet(&self, n: u32) -> Option<Prefix> {
        let step = 1u128.checked_shl(u32::from(self.network.width().checked_sub(self.subnet_len)?))?;
        let addr = self.network.nth(u128::from(n).checked_mul(step)?)?;
        Prefix::new(addr, self.subnet_len).ok().filter(|subnet| self.may_lease(subnet))
    }

    /// True when `prefix` is a part of the Pod network, of whatever length, and not all of it.
    #[must_use]
    pub(crate) fn has_subnet(&self, prefix: &Prefix) -> bool {
        self.network.covers(prefix) && *prefix != self.network
    }

    /// True when a node may get `subnet`: it has the right length and lies between the first and the last.
    #[must_use]
    pub(crate) fn may_lease(&self, subnet: &Prefix) -> bool {
        subnet.family() == self.network.family()
            && subnet.len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(subnet)
    }

    /// Every subnet a node may get, in order.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = Prefix> {
        let last = self.subnet_max;
        std::iter::successors(Some(self.subnet_min), Prefix::next).take_while(move |subnet| *subnet <= last)
    }
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

impl NetConf {
    /// Reads the text of net-conf.json or of the key `<prefix>/config`.
    ///
    /// # Errors
    /// Every problem of the text, each with its field.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let accepted = r#"a JSON object such as {"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let mut object =
            Object::parse(text).map_err(|error| vec![Problem::new("net-conf", error.to_string(), accepted)])?;
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        refuse_unbuilt_families(&mut object, &mut problems);
        let pool = take_pool(&mut object, &mut problems);
        let backend = backend::take(&mut object, &mut problems, &mut notes);
        if object.take("EnableNFTables", BOOL, &mut problems) == Some(false) {
            notes.push("EnableNFTables: false is ignored: netd writes nftables rules only".to_owned());
        }
        notes.extend(object.rest().iter().map(|key| format!("{key}: unknown key, ignored")));
        match (pool, backend) {
            (Some(pool), Some(backend)) if problems.is_empty() => {
                let pools = PerFamily::only(IpFamily::V4, pool);
                Ok(Self { network: Network { pools, backend }, notes })
            }
            _ => Err(problems),
        }
    }
}

fn refuse_unbuilt_families(object: &mut Object, problems: &mut Vec<Problem>) {
    if object.take("EnableIPv4", BOOL, problems) == Some(false) {
        problems.push(Problem::new("EnableIPv4", "false: this netd carries IPv4 Pod networks only", "true"));
    }
    if object.take("EnableIPv6", BOOL, problems) == Some(true) {
        problems.push(Problem::new("EnableIPv6", "true: this netd carries IPv4 Pod networks only", "false"));
    }
    for key in ["IPv6Network", "IPv6SubnetMin", "IPv6SubnetMax", "IPv6SubnetLen"] {
        // Without EnableIPv6 flannel reads and ignores them.
        object.take_raw(key);
    }
}

/// Takes the address part of a network.
fn take_pool(object: &mut Object, problems: &mut Vec<Problem>) -> Option<Pool> {
    let known = problems.len();
    let network = take_network(object, problems);
    let len: Option<u64> = object.take("SubnetLen", "a number from 2 to 30", problems);
    let min = object.take::<Ipv4Addr>("SubnetMin", SUBNET, problems);
    let max = object.take::<Ipv4Addr>("SubnetMax", SUBNET, problems);
    let network = network?;
    if network.len() > 28 {
        let message = format!("{network}: network is too small. Minimum useful network prefix is /28");
        problems.push(Problem::new("Network", message, "a network from /1 to /28"));
        return None;
    }
    let len = subnet_len(network, len, problems)?;
    let default_min = network.nth(1u128 << (32 - u32::from(len))).and_then(|addr| Prefix::new(addr, len).ok());
    let default_max = Prefix::new(network.last(), len).ok();
    let min = bound("SubnetMin", min, network, len, problems).or(default_min)?;
    let max = bound("SubnetMax", max, network, len, problems).or(default_max)?;
    if min > max {
        let message = format!("{} is after SubnetMax {}", min.addr(), max.addr());
        problems.push(Problem::new("SubnetMin", message, "an address up to SubnetMax"));
    }
    (problems.len() == known).then_some(Pool { network, subnet_len: len, subnet_min: min, subnet_max: max })
}

const NETWORK: &str = "an IPv4 network such as 172.7.0.0/16";
const SUBNET: &str = "the first address of a subnet such as 172.7.21.0";

fn take_network(object: &mut Object, problems: &mut Vec<Problem>) -> Option<Prefix> {
    let mut refuse = |message: String| {
        problems.push(Problem::new("Network", message, NETWORK));
        None
    };
    let Some(raw) = object.take_raw("Network") else { return refuse("missing".to_owned()) };
    let text: Option<String> = serde_json::from_str(raw.get()).ok();
    let parsed = text.and_then(|text| text.parse::<Prefix>().ok()).filter(Prefix::is_ipv4);
    match parsed {
        Some(network) if network.is_default() => refuse(format!("{network} is every address")),
        Some(network) => Some(network),
        None => refuse(raw.get().to_owned()),
    }
}

/// flannel: /24 in networks up to /22, else a quarter of the network.
fn subnet_len(network: Prefix, typed: Option<u64>, problems: &mut Vec<Problem>) -> Option<u8> {
    let smallest = network.len() + 2;
    let Some(len) = typed.filter(|len| *len != 0) else {
        return Some(if network.len() <= 22 { 24 } else { smallest });
    };
    let message = match u8::try_from(len) {
        Ok(len) if (smallest..=30).contains(&len) => return Some(len),
        Ok(len) if len < smallest => format!("{len}: network must be able to accommodate at least four subnets"),
        _ => format!("{len}: SubnetLen must be less than /31"),
    };
    problems.push(Problem::new("SubnetLen", message, format!("a number from {smallest} to 30")));
    None
}

fn bound(
    field: &str,
    typed: Option<Ipv4Addr>,
    network: Prefix,
    len: u8,
    problems: &mut Vec<Problem>,
) -> Option<Prefix> {
    let addr = IpAddr::V4(typed.filter(|addr| !addr.is_unspecified())?);
    let subnet = Prefix::new(addr, len).ok()?;
    let message = if !network.contains(addr) {
        format!("{addr} is not in the range of Network {network}")
    } else if subnet.addr() != addr {
        format!("{addr} is not on a SubnetLen boundary (/{len})")
    } else {
        return Some(subnet);
    };
    problems.push(Problem::new(field, message, SUBNET));
    None
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

    #[test]
    fn every_option_of_flannel_is_read() {
        let text = r#"{"Network":"10.3.5.9/16","SubnetLen":28,"SubnetMin":"10.3.1.0","SubnetMax":"10.3.9.16",
            "Backend":{"type":"VXLAN","vni":7,"PORT":4789,"Mtu":9000,"GBP":true,"Learning":true,"DirectRouting":true,"MacPrefix":"0E-2A"}}"#;
        let conf = NetConf::parse(text).unwrap();
        assert_eq!(conf.network.to_string(), "10.3.0.0/16");
        assert_eq!(conf.network.pools.v4.unwrap().subnet_max.to_string(), "10.3.9.16/28");
        let vxlan = Vxlan { vni: 7, port: 4789, mtu: Some(9000), gbp: true, learning: true, direct_routing: true };
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
        assert_eq!(fields, ["EnableIPv6", "Network", "SubnetLen", "Backend.Port", "Backend.VNI", "Backend.MTU"]);
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
            (r#"{"Network":"0.0.0.0/0"}"#, "every address"),
            (r#"{}"#, "missing"),
            (r#"{"Network":"10.0.0.0/16","Backend":{}}"#, "unknown backend type"),
            (r#"{"Network":"10.0.0.0/16","Backend":[]}"#, "an object"),
            (r#"{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}"#, "does not have"),
            (r#"{"Network":"10.0.0.0/16"} x"#, "trailing characters"),
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
        assert_eq!(network.subnet(u32::MAX), None);
        assert!(!network.may_lease(&"172.7.21.0/25".parse().unwrap()));
    }

    #[test]
    fn the_last_subnet_of_the_address_space_ends_the_walk() {
        let network = parse(r#"{"Network":"255.255.255.0/24","SubnetLen":26}"#);
        assert_eq!(network.subnets().count(), 3);
    }
}
