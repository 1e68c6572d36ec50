//! The `ipam` section, as host-local reads it (plugins/ipam/host-local/backend/allocator/config.go).
//!
//! Address management happens in this process. Another `ipam.type` than `host-local` would need another program to be
//! executed, which this plugin never does: it is refused.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use netstate::subnet_file::SubnetFile;
use netstate::{IpFamily, Prefix};
use serde_json::Value;

use super::RuntimeConfig;
use crate::protocol::args::{CniArgs, address};
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::{Fields, unsupported};
use crate::protocol::range::{Range, RangeSet};
use crate::protocol::result::{ResultRoute, parse_route};
use crate::protocol::version::SpecVersion;

/// host-local's default for `dataDir`.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// Where addresses come from and which routes a Pod gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConf {
    /// Directory that holds one directory of reservations per network.
    pub data_dir: PathBuf,
    /// One address comes from each set.
    pub sets: Vec<RangeSet>,
    /// Routes for the Pod.
    pub routes: Vec<ResultRoute>,
    /// A resolv.conf whose settings go into the result.
    pub resolv_conf: Option<PathBuf>,
    /// Addresses the Pod must get.
    pub requested: Vec<IpAddr>,
}

impl IpamConf {
    /// Reads `fields` and adds what the runtime asked for. A `lease` takes the place of the configured ranges, and its
    /// networks are routes besides the configured ones.
    ///
    /// # Errors
    /// Code 7 for an invalid value, 2 for one that is not honoured.
    pub fn parse(
        mut fields: Fields,
        lease: Option<&SubnetFile>,
        args_cni: &[IpAddr],
        args: &CniArgs,
        runtime: &RuntimeConfig,
    ) -> Result<Self, CniError> {
        if let Some(kind) = fields.take_text("type")?.filter(|kind| kind != "host-local") {
            return Err(unsupported(&fields.path_of("type"), &kind).details("accepted is host-local"));
        }
        let mut sets = runtime.ip_ranges.clone();
        sets.extend(legacy_range(&mut fields)?);
        let path = fields.path_of("ranges");
        match lease {
            None => sets.extend(range_sets(&mut fields, "ranges")?),
            Some(subnet) => {
                fields.take("ranges")?;
                sets.extend(leased_sets(subnet, &path)?);
            }
        }
        check_sets(&path, &sets)?;
        let conf = Self {
            data_dir: data_dir(&mut fields)?,
            sets,
            routes: routes(&mut fields, lease)?,
            resolv_conf: fields.take_text("resolvConf")?.filter(|p| !p.is_empty()).map(PathBuf::from),
            requested: args.ip.iter().chain(args_cni).chain(&runtime.ips).copied().collect(),
        };
        fields.finish()?;
        Ok(conf)
    }

    /// The addresses to ask for: those that somebody requested, or of each set one that an `earlier` ADD of the same attachment
    /// had, if it can be had still: sets and gateways may be others now.
    #[must_use]
    pub fn wanted(&self, earlier: &[IpAddr]) -> Vec<IpAddr> {
        if !self.requested.is_empty() {
            return self.requested.clone();
        }
        let can_be_had = |set: &RangeSet, addr: IpAddr| set.range_of(addr).is_some() && !set.is_gateway(addr);
        self.sets.iter().filter_map(|set| earlier.iter().copied().find(|addr| can_be_had(set, *addr))).collect()
    }

    /// Results of 0.1.0 and 0.2.0 hold one address per family: better refused before anything is done.
    ///
    /// # Errors
    /// Code 1.
    pub fn check_version(&self, version: SpecVersion) -> Result<(), CniError> {
        let of_family = |family| self.sets.iter().filter(|set| set.family() == Some(family)).count();
        if version > SpecVersion::V0_2_0 || IpFamily::ALL.into_iter().all(|family| of_family(family) <= 1) {
            return Ok(());
        }
        let msg = format!("CNI version {version} does not support more than 1 address per family");
        Err(CniError::new(Code::IncompatibleVersion, msg).details("set cniVersion to 0.3.1 or newer"))
    }
}

/// Takes `dataDir`, with host-local's default.
///
/// # Errors
/// Code 7 when it is no text.
pub(crate) fn data_dir(fields: &mut Fields) -> Result<PathBuf, CniError> {
    let dir = fields.take_text("dataDir")?.filter(|dir| !dir.is_empty());
    Ok(PathBuf::from(dir.as_deref().unwrap_or(DEFAULT_DATA_DIR)))
}

/// Largest route MTU and TCP segment in bytes: the kernel cuts down what is larger (net/ipv4/metrics.c).
const ROUTE_MTU_MAX: u32 = 65_520;
const ROUTE_ADVMSS_MAX: u32 = 65_495;

/// A route of the configuration. All it says is installed; the stock bridge plugin repeats `mtu` and `advmss` in its
/// result and leaves them out of the kernel.
fn route(mut fields: Fields) -> Result<ResultRoute, CniError> {
    let path = fields.path_of("gw");
    let (mtu, advmss, scope) = (fields.path_of("mtu"), fields.path_of("advmss"), fields.path_of("scope"));
    let route = parse_route(&mut fields)?;
    for (path, value, max) in [(mtu, route.mtu, ROUTE_MTU_MAX), (advmss, route.advmss, ROUTE_ADVMSS_MAX)] {
        if let Some(value) = value.filter(|value| *value > max) {
            return Err(CniError::invalid_field(&path, &value.to_string(), &format!("a number of bytes up to {max}")));
        }
    }
    match (route.scope, route.gw) {
        (None | Some(0), _) | (Some(253 | 254), None) => {}
        (Some(253 | 254), Some(_)) => {
            return Err(CniError::invalid_field(&scope, "link and host scope have no gateway", "0, or no gw"));
        }
        (Some(other), _) => {
            return Err(CniError::invalid_field(&scope, &other.to_string(), "0 (universe), 253 (link) or 254 (host)"));
        }
    }
    if let Some(gw) = route.gw.filter(|gw| gw.is_ipv4() != route.dst.is_ipv4()) {
        return Err(CniError::invalid_field(&path, &gw.to_string(), "a gateway of the family of dst"));
    }
    fields.finish()?;
    Ok(route)
}

fn routes(fields: &mut Fields, lease: Option<&SubnetFile>) -> Result<Vec<ResultRoute>, CniError> {
    let mut routes = fields.take_objects("routes")?.into_iter().map(route).collect::<Result<Vec<_>, _>>()?;
    let networks = lease.into_iter().flat_map(SubnetFile::networks);
    routes.extend(networks.map(|network| ResultRoute::to(*network, None)));
    Ok(routes)
}

/// A set for each of the node's subnets.
fn leased_sets(subnet: &SubnetFile, path: &str) -> Result<Vec<RangeSet>, CniError> {
    let set = |subnet: &Prefix| Range::new(*subnet, None, None, None).and_then(|range| RangeSet::new(vec![range]));
    let subnets = subnet.subnet_v4.iter().chain(&subnet.subnet_v6);
    subnets.map(|subnet| set(subnet).map_err(|e| CniError::invalid_field(path, &e.to_string(), SUBNET))).collect()
}

fn check_sets(path: &str, sets: &[RangeSet]) -> Result<(), CniError> {
    if sets.is_empty() {
        return Err(CniError::invalid_field(
            path,
            "no IP ranges specified",
            "at least one [{\"subnet\": \"172.7.21.0/24\"}]",
        ));
    }
    let mut rest = sets;
    while let Some((one, others)) = rest.split_first() {
        if let Some(other) = others.iter().find(|other| one.overlaps(other)) {
            let found = format!("range set {one} overlaps with {other}");
            return Err(CniError::invalid_field(path, &found, "sets without common addresses"));
        }
        rest = others;
    }
    Ok(())
}

/// The single range of configurations from before `ranges`: its fields stand in `ipam` itself.
fn legacy_range(fields: &mut Fields) -> Result<Option<RangeSet>, CniError> {
    let path = fields.path_of("subnet");
    let Some(range) = range(fields)? else { return Ok(None) };
    RangeSet::new(vec![range]).map(Some).map_err(|e| CniError::invalid_field(&path, &e.to_string(), "one range"))
}

/// The most ranges of one network: each is compared with all others.
const RANGES_MAX: usize = 1000;

/// Takes an array of arrays of ranges.
///
/// # Errors
/// Code 7, naming the range.
pub(super) fn range_sets(fields: &mut Fields, key: &str) -> Result<Vec<RangeSet>, CniError> {
    let path = fields.path_of(key);
    let sets = fields.take_list(key)?;
    let count: usize = sets.iter().map(|set| set.as_array().map_or(1, Vec::len)).sum();
    if count > RANGES_MAX {
        return Err(CniError::invalid_field(&path, &format!("{count} ranges"), &format!("at most {RANGES_MAX}")));
    }
    let sets = sets.into_iter().enumerate();
    sets.map(|(index, value)| range_set(fields, value, &format!("{path}[{index}]"))).collect()
}

fn range_set(parent: &Fields, value: Value, path: &str) -> Result<RangeSet, CniError> {
    const ACCEPTED: &str = "an array of ranges of one family, such as [{\"subnet\": \"172.7.21.0/24\"}]";
    let Value::Array(items) = value else { return Err(CniError::invalid_field(path, &value.to_string(), ACCEPTED)) };
    let mut ranges = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let mut fields = parent.within(item, &format!("{path}[{index}]"))?;
        let subnet = fields.path_of("subnet");
        ranges.push(range(&mut fields)?.ok_or_else(|| CniError::invalid_field(&subnet, "is missing", SUBNET))?);
        fields.finish()?;
    }
    RangeSet::new(ranges).map_err(|e| CniError::invalid_field(path, &format!("invalid range set: {e}"), ACCEPTED))
}

const SUBNET: &str = "a network such as 172.7.21.0/24, with zero host bits";

fn range(fields: &mut Fields) -> Result<Option<Range>, CniError> {
    let path = fields.path_of("subnet");
    let subnet = fields.take_text("subnet")?.filter(|text| !text.is_empty());
    let first = fields.take_address("rangeStart")?;
    let last = fields.take_address("rangeEnd")?;
    let gateway = fields.take_address("gateway")?;
    let Some(text) = subnet else {
        let lone = first.or(last).or(gateway);
        return lone.map_or(Ok(None), |_| Err(CniError::invalid_field(&path, "is missing", SUBNET)));
    };
    let network: Prefix = text.parse().map_err(|_| CniError::invalid_field(&path, &format!("{text:?}"), SUBNET))?;
    if text.parse::<IpNetwork>().is_ok_and(|written| written.ip() != network.addr()) {
        let found = format!(
            "network has host bits set: {text:?}; for a prefix of {} bits the network is {network}",
            network.len()
        );
        return Err(CniError::invalid_field(&path, &found, SUBNET));
    }
    let range = Range::new(network, first, last, gateway);
    range.map(Some).map_err(|e| CniError::invalid_field(&path, &e.to_string(), SUBNET))
}

/// Takes an array of addresses; a prefix length is dropped.
///
/// # Errors
/// Code 7 for one that is no address.
pub(super) fn addresses(fields: &mut Fields, key: &str) -> Result<Vec<IpAddr>, CniError> {
    let path = fields.path_of(key);
    let parse = |text: String| {
        address(&text)
            .ok_or_else(|| CniError::invalid_field(&path, &format!("{text:?}"), "addresses such as 172.7.21.9"))
    };
    fields.take_texts(key)?.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<IpamConf, CniError> {
        let fields = Fields::of(value, "ipam").unwrap();
        IpamConf::parse(fields, None, &[], &CniArgs::default(), &RuntimeConfig::default())
    }

    fn sets(conf: &IpamConf) -> Vec<String> {
        conf.sets.iter().map(RangeSet::to_string).collect()
    }

    #[test]
    fn legacy_range_comes_before_ranges_and_those_of_the_runtime_before_both() {
        let value = json!({"type": "host-local", "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20",
            "gateway": "10.1.2.30", "ranges": [[{"subnet": "fd00::/64"}, {"subnet": "fd01::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": "/etc/resolv.conf"});
        let conf = parse(value.clone()).unwrap();
        assert_eq!(sets(&conf)[0], "10.1.2.9-10.1.2.20");
        assert_eq!(conf.sets[0].ranges()[0].gateway().to_string(), "10.1.2.30");
        assert_eq!(conf.sets.len(), 2);
        assert_eq!(conf.data_dir, PathBuf::from("/var/lib/cni/networks"));
        let runtime = RuntimeConfig {
            ip_ranges: parse(json!({"subnet": "10.9.0.0/24"})).unwrap().sets,
            ..RuntimeConfig::default()
        };
        let conf =
            IpamConf::parse(Fields::of(value, "ipam").unwrap(), None, &[], &CniArgs::default(), &runtime).unwrap();
        assert_eq!(sets(&conf)[0], "10.9.0.1-10.9.0.254");
    }

    #[test]
    fn requested_addresses_of_all_sources_are_joined() {
        let args = CniArgs::parse("IP=10.1.2.7").unwrap();
        let runtime = RuntimeConfig { ips: vec!["fd00::9".parse().unwrap()], ..RuntimeConfig::default() };
        let fields = Fields::of(json!({"subnet": "10.1.2.0/24"}), "ipam").unwrap();
        let conf = IpamConf::parse(fields, None, &["10.1.2.8".parse().unwrap()], &args, &runtime).unwrap();
        assert_eq!(
            conf.requested.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
            ["10.1.2.7", "10.1.2.8", "fd00::9"]
        );
    }

    #[test]
    fn earlier_addresses_are_asked_for_as_far_as_they_can_be_had_still() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let one =
            json!({"ranges": [[{"subnet": "10.1.2.0/25"}, {"subnet": "10.1.2.128/25"}], [{"subnet": "fd00::/64"}]]});
        let mut conf = parse(one).unwrap();
        for (earlier, wanted) in [
            (&[][..], &[][..]),
            (&["10.1.2.7", "fd00::7"], &["10.1.2.7", "fd00::7"]),
            (&["fd00::7"], &["fd00::7"]),
            // Of two sets that are one set now.
            (&["10.1.2.7", "10.1.2.130"], &["10.1.2.7"]),
            (&["10.1.3.7", "fd01::7"], &[]),
            // A gateway now.
            (&["10.1.2.1", "10.1.2.129", "10.1.2.130"], &["10.1.2.130"]),
        ] {
            assert_eq!(conf.wanted(&ips(earlier)), ips(wanted), "{earlier:?}");
        }
        conf.requested = ips(&["10.1.2.9"]);
        assert_eq!(
            conf.wanted(&ips(&["10.1.2.7", "fd00::7"])),
            ips(&["10.1.2.9"]),
            "what is asked for, and nothing else"
        );
    }

    #[test]
    fn bad_sections_name_field_and_reason() {
        for (value, text) in [
            (json!({}), "ipam.ranges: no IP ranges specified"),
            (json!({"ranges": [vec![json!({"subnet": "10.0.0.0/24"}); 1001]]}), "ipam.ranges: 1001 ranges"),
            (json!({"ranges": [[]]}), "ipam.ranges[0]: invalid range set: empty range set"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}), "mixed address families"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]}), "overlap"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}), "overlaps with"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/31"}]]}), "too small to allocate from"),
            (json!({"ranges": [[{"subnet": "10.0.0.1/24"}]]}), "host bits set"),
            (json!({"ranges": [[{"subnet": "10.0.0.0"}]]}), "ipam.ranges[0][0].subnet"),
            (json!({"ranges": [[{"rangeStart": "10.0.0.1"}]]}), "ipam.ranges[0][0].subnet: is missing"),
            (json!({"ranges": [{"subnet": "10.0.0.0/24"}]}), "ipam.ranges[0]:"),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "gw": "10.0.0.1"}]}), "ipam.routes[0].gw"),
            (json!({"gateway": "10.0.0.1"}), "ipam.subnet: is missing"),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "mtu": 65521}]}), "ipam.routes[0].mtu"),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "advmss": 65496}]}), "ipam.routes[0].advmss"),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "scope": 200}]}), "ipam.routes[0].scope"),
            (
                json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.1", "scope": 253}]}),
                "ipam.routes[0].scope",
            ),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.code == Code::InvalidConfig && error.msg.contains(text), "{error} lacks {text}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (value, key) in [
            (json!({"type": "dhcp"}), "ipam.type=dhcp"),
            (json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "mss": 9}]}), "ipam.routes[0].mss=9"),
            (json!({"subnet": "10.0.0.0/24", "datadir2": "/x"}), "ipam.datadir2"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24", "mask": 24}]]}), "ipam.ranges[0][0].mask"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.code == Code::UnsupportedField && error.msg.contains(key), "{error}");
        }
    }
}
