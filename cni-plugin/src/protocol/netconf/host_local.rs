//! The configuration of a plugin that leaves address management to `host-local` (plugins/ipam/host-local).
//!
//! The whole configuration of that plugin comes in; `ipam`, `args.cni.ips` and, of `runtimeConfig`, `ips` and
//! `ipRanges` are host-local's. Invariant: the rest is the other plugin's business and never examined.

use std::net::IpAddr;

use super::ipam::{addresses, range_sets};
use super::{IpamConf, NetConf, RuntimeConfig};
use crate::protocol::args::CniArgs;
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::Fields;

/// Reads what concerns addresses out of `conf`.
///
/// # Errors
/// Code 7 for an invalid value, 2 for one that is not honoured, 1 when the version cannot say so many addresses.
pub fn parse(mut conf: NetConf, args: &CniArgs) -> Result<IpamConf, CniError> {
    let missing = || CniError::new(Code::InvalidConfig, "IPAM config missing 'ipam' key");
    let section = conf.fields.take_object("ipam")?.ok_or_else(missing)?;
    let requested = requested(&mut conf.fields)?;
    let ipam = IpamConf::parse(section, None, &requested, args, &runtime(conf.runtime)?)?;
    ipam.check_version(conf.version)?;
    Ok(ipam)
}

/// `args.cni.ips`; other members are for other plugins.
fn requested(fields: &mut Fields) -> Result<Vec<IpAddr>, CniError> {
    let Some(mut args) = fields.take_object("args")? else { return Ok(Vec::new()) };
    let Some(mut cni) = args.take_object("cni")? else { return Ok(Vec::new()) };
    addresses(&mut cni, "ips")
}

/// `runtimeConfig.ips` and `.ipRanges`; other capabilities are for other plugins.
fn runtime(fields: Option<Fields>) -> Result<RuntimeConfig, CniError> {
    let Some(mut fields) = fields else { return Ok(RuntimeConfig::default()) };
    let ips = addresses(&mut fields, "ips")?;
    let ip_ranges = range_sets(&mut fields, "ipRanges")?;
    Ok(RuntimeConfig { ips, ip_ranges, ..RuntimeConfig::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value, args: &str) -> Result<IpamConf, CniError> {
        parse(NetConf::parse(value.to_string().as_bytes())?, &CniArgs::parse(args)?)
    }

    fn macvlan() -> Value {
        json!({"cniVersion": "0.3.1", "name": "mynet", "type": "macvlan", "master": "foo0", "mode": "bridge",
               "args": {"cni": {"ips": ["10.1.2.11"], "labels": [{"key": "a"}]}},
               "runtimeConfig": {"ips": ["10.1.2.12/24"], "mac": "02:00:00:00:00:01",
                                 "IPRanges": [[{"Subnet": "10.9.0.0/24"}]], "portMappings": [{"HostPort": 1}]},
               "ipam": {"type": "host-local", "subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}]}})
    }

    #[test]
    fn only_what_concerns_addresses_is_read() {
        let ipam = read(&macvlan(), "IP=10.1.2.10/24").unwrap();
        let requested: Vec<String> = ipam.requested.iter().map(IpAddr::to_string).collect();
        assert_eq!(requested, ["10.1.2.10", "10.1.2.11", "10.1.2.12"], "all three sources, in this order");
        assert_eq!(ipam.sets[0].to_string(), "10.9.0.1-10.9.0.254", "the runtime's ranges come first");
        assert_eq!(ipam.routes[0].mtu, Some(1400), "routes are the other plugin's to install");
    }

    #[test]
    fn an_option_of_ipam_that_nobody_knows_is_refused() {
        let mut conf = macvlan();
        conf["ipam"]["rangestat"] = json!("10.1.2.7");
        assert_eq!(read(&conf, "").unwrap_err().code, Code::UnsupportedField);
        conf["ipam"] = Value::Null;
        assert_eq!(read(&conf, "").unwrap_err().msg, "IPAM config missing 'ipam' key");
    }

    #[test]
    fn more_addresses_than_the_version_can_say_are_refused_before_anything_is_done() {
        let mut conf = macvlan();
        conf["cniVersion"] = json!("0.2.0");
        let error = read(&conf, "").unwrap_err();
        assert_eq!(error.msg, "CNI version 0.2.0 does not support more than 1 address per family");
        conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "2001:db8:1::/48"}]]});
        assert_eq!(read(&conf, "").unwrap().sets.len(), 2, "one IPv4 and one IPv6 address are fine");
    }

    /// The reference's config_test: which sets and requests come out, or which error.
    #[test]
    fn configurations_of_the_reference_are_read_as_there() {
        let base = json!({"cniVersion": "0.3.1", "name": "mynet", "type": "ipvlan", "master": "foo0"});
        let of = |ipam: Value| {
            let mut conf = base.clone();
            conf["ipam"] = ipam;
            conf["ipam"]["type"] = json!("host-local");
            conf
        };
        let old =
            json!({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.30"});
        let new = json!([[{"subnet": "10.1.4.0/24", "rangeStart": "10.1.4.9", "rangeEnd": "10.1.4.20"},
                          {"subnet": "11.1.4.0/24"}], [{"subnet": "2001:db8:1::/64"}]]);
        let mut mixed = old.clone();
        mixed["ranges"] = new.clone();
        for (ipam, sets) in [
            (old.clone(), &["10.1.2.9-10.1.2.20"][..]),
            (
                json!({"ranges": new}),
                &["10.1.4.9-10.1.4.20,11.1.4.1-11.1.4.254", "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff"],
            ),
            (
                mixed,
                &[
                    "10.1.2.9-10.1.2.20",
                    "10.1.4.9-10.1.4.20,11.1.4.1-11.1.4.254",
                    "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff",
                ],
            ),
        ] {
            let read = read(&of(ipam), "").unwrap();
            assert_eq!(read.sets.iter().map(ToString::to_string).collect::<Vec<_>>(), sets);
        }
        for (args, expected) in [("IP=10.1.2.10", "10.1.2.10"), ("IP=10.1.2.11/24", "10.1.2.11")] {
            assert_eq!(read(&of(old.clone()), args).unwrap().requested, [expected.parse::<IpAddr>().unwrap()]);
        }
        for (ranges, text) in [
            (
                json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "10.2.2.0/24"}], [{"subnet": "10.1.0.0/16"}]]),
                "overlaps with",
            ),
            (json!([[{"subnet": "10.1.0.0/22"}, {"subnet": "10.1.2.0/24"}]]), "invalid range set"),
            (json!([[{"subnet": "10.1.0.0/16"}, {"subnet": "10.1.2.0/24"}]]), "overlap"),
            (json!([[{"subnet": "10.1.2.0/24"}, {"subnet": "2001:db8:5::/64"}]]), "mixed address families"),
            (json!([]), "no IP ranges specified"),
            (json!([[{"subnet": "192.0.2.12/24"}]]), "for a prefix of 24 bits the network is 192.0.2.0/24"),
        ] {
            let error = read(&of(json!({"ranges": ranges})), "").unwrap_err().to_string();
            assert!(error.contains(text), "{error} lacks {text}");
        }
        let mut two = of(json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.3.0/24"}]]}));
        two["cniVersion"] = json!("0.2.0");
        assert!(read(&two, "").unwrap_err().msg.contains("does not support more than 1 address per family"));
    }
}
