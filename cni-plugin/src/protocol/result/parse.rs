//! Parses a result: the `prevResult` of a chained plugin, of CHECK and of DEL.
//!
//! The shape is recognised by its fields, not by its version: runtimes patch versions in. Unknown fields are left
//! alone, because a later plugin of the chain may have added them; who must pass them on passes on the original text.

use std::net::IpAddr;

use netstate::{MacAddr, Prefix};
use serde_json::Value;

use super::{AddResult, Dns, Interface, IpConfig, ResultRoute};
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::Fields;
use crate::protocol::version::SpecVersion;

const CIDR: &str = "an address with its prefix length such as 172.7.21.2/24";

/// Reads a result object of any version.
///
/// # Errors
/// Code 7, naming the field that is not as the specification says.
pub fn parse(value: Value) -> Result<AddResult, CniError> {
    let mut fields = Fields::of(value, "prevResult")?;
    let mut result = AddResult::default();
    for mut item in fields.take_objects("interfaces")? {
        result.interfaces.push(interface(&mut item)?);
    }
    for mut item in fields.take_objects("ips")? {
        result.ips.push(ip_config(&mut item)?);
    }
    for key in ["ip4", "ip6"] {
        if let Some(mut item) = fields.take_object(key)? {
            result.ips.push(family(&mut item, &mut result.routes)?);
        }
    }
    for mut item in fields.take_objects("routes")? {
        result.routes.push(route(&mut item)?);
    }
    if let Some(mut item) = fields.take_object("dns")? {
        result.dns = dns(&mut item)?;
    }
    Ok(result)
}

/// What a plugin that changes no result needs of the one before it: `previous` as it came, unknown keys included, in
/// `version`, with which libcni compares it; and what it says.
///
/// # Errors
/// Code 7 without a previous result, and as [`parse`].
pub(crate) fn chained(previous: Option<Value>, version: SpecVersion) -> Result<(Value, AddResult), CniError> {
    let missing = || CniError::new(Code::InvalidConfig, "must be called as chained plugin: prevResult is missing");
    let mut previous = previous.ok_or_else(missing)?;
    let result = parse(previous.clone())?;
    if let Value::Object(map) = &mut previous {
        map.insert("cniVersion".to_owned(), Value::String(version.to_string()));
    }
    Ok((previous, result))
}

fn interface(item: &mut Fields) -> Result<Interface, CniError> {
    Ok(Interface {
        name: item.take_text("name")?.unwrap_or_default(),
        mac: mac(item)?,
        mtu: number(item, "mtu")?,
        sandbox: item.take_text("sandbox")?.filter(|path| !path.is_empty()),
    })
}

/// A hardware address of another length, as InfiniBand's, is that of another plugin's link: none that we compare.
fn mac(item: &mut Fields) -> Result<Option<MacAddr>, CniError> {
    let path = item.path_of("mac");
    let Some(text) = item.take_text("mac")?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let is_octet = |word: &str| word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit());
    match text.parse() {
        Ok(mac) => Ok(Some(mac)),
        Err(_) if text.contains(':') && text.split(':').all(is_octet) => Ok(None),
        Err(_) => Err(CniError::invalid_field(&path, &format!("{text:?}"), "an address such as 0a:58:ac:07:15:02")),
    }
}

fn ip_config(item: &mut Fields) -> Result<IpConfig, CniError> {
    let (addr, len) = cidr(item, "address")?;
    // Absent and -1 both occur for "the container's interface".
    let interface = item.take("interface")?.and_then(|v| usize::try_from(v.as_i64()?).ok());
    Ok(IpConfig { interface, addr, len, gateway: item.take_address("gateway")? })
}

fn family(item: &mut Fields, routes: &mut Vec<ResultRoute>) -> Result<IpConfig, CniError> {
    let (addr, len) = cidr(item, "ip")?;
    for mut inner in item.take_objects("routes")? {
        routes.push(route(&mut inner)?);
    }
    Ok(IpConfig { interface: None, addr, len, gateway: item.take_address("gateway")? })
}

fn cidr(item: &mut Fields, key: &str) -> Result<(IpAddr, u8), CniError> {
    let path = item.path_of(key);
    let text = item.take_text(key)?.unwrap_or_default();
    let bad = || CniError::invalid_field(&path, &format!("{text:?}"), CIDR);
    let (addr, len) = text.split_once('/').ok_or_else(bad)?;
    let (addr, len) = (addr.parse::<IpAddr>().map_err(|_| bad())?, len.parse::<u8>().map_err(|_| bad())?);
    Prefix::new(addr, len).map_err(|_| bad())?;
    Ok((addr, len))
}

/// Reads one route object `{dst, gw, mtu, advmss, priority, table, scope}`: of a result, and of `ipam.routes`.
///
/// # Errors
/// Code 7, naming the field.
pub(crate) fn route(item: &mut Fields) -> Result<ResultRoute, CniError> {
    const DST: &str = "a network such as 172.7.0.0/16";
    let path = item.path_of("dst");
    let dst = item.take_parsed("dst", DST)?.ok_or_else(|| CniError::invalid_field(&path, "is missing", DST))?;
    let scope = item.take_number("scope", 255)?.and_then(|n| u8::try_from(n).ok());
    Ok(ResultRoute {
        dst,
        gw: item.take_address("gw")?,
        mtu: number(item, "mtu")?,
        advmss: number(item, "advmss")?,
        priority: number(item, "priority")?,
        table: number(item, "table")?,
        scope,
    })
}

fn number(item: &mut Fields, key: &str) -> Result<Option<u32>, CniError> {
    let value = item.take_number(key, u64::from(u32::MAX))?.and_then(|n| u32::try_from(n).ok());
    // Go leaves out what is zero; zero therefore means "not set".
    Ok(value.filter(|n| *n != 0))
}

/// Reads a DNS object `{nameservers, domain, search, options}`.
///
/// # Errors
/// Code 7, naming the field.
pub(crate) fn dns(item: &mut Fields) -> Result<Dns, CniError> {
    Ok(Dns {
        nameservers: item.take_texts("nameservers")?,
        domain: item.take_text("domain")?.unwrap_or_default(),
        search: item.take_texts("search")?,
        options: item.take_texts("options")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_chained_plugin_passes_on_what_it_does_not_know_in_its_own_version() {
        let given =
            json!({"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.2/24", "x": [1]}], "example.com/y": {"z": 1}});
        let (passed_on, result) = chained(Some(given.clone()), SpecVersion::V1_0_0).unwrap();
        let mut expected = given;
        expected["cniVersion"] = json!("1.0.0");
        assert_eq!((passed_on, result.ips.len()), (expected, 1));
        let error = chained(None, SpecVersion::V1_0_0).unwrap_err();
        assert!(error.code == Code::InvalidConfig && error.msg.contains("must be called as chained plugin"), "{error}");
    }

    #[test]
    fn shape_of_0_2_0_is_read_with_its_nested_routes() {
        let value = json!({"cniVersion": "0.2.0", "dns": {}, "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0"}]}, "ip6": {"ip": "fd00::5/64"}});
        let result = parse(value).unwrap();
        assert_eq!(result.ips.len(), 2);
        assert_eq!(result.ips[0].gateway, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(result.routes, [ResultRoute::to("0.0.0.0/0".parse().unwrap(), None)]);
    }

    #[test]
    fn odd_but_real_results_are_read() {
        let infiniband = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:01:02:03";
        let value = json!({"ips": [{"address": "10.1.0.5/16", "interface": -1}, {"Address": "10.1.0.6/16"}],
            "interfaces": [{"name": "eth0", "mac": "", "socketPath": "/x", "sandbox": ""}, {"name": "ib0", "mac": infiniband}],
            "vendor": {"x": 1}});
        let result = parse(value).unwrap();
        assert_eq!(result.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [None, None]);
        assert_eq!((result.interfaces[0].mac, &result.interfaces[0].sandbox), (None, &None));
        assert_eq!((result.interfaces[1].mac, result.interfaces[1].name.as_str()), (None, "ib0"));
    }

    #[test]
    fn broken_results_name_the_field() {
        for (value, path) in [
            (json!([]), "prevResult:"),
            (json!({"ips": [{"address": "10.1.0.5"}]}), "prevResult.ips[0].address"),
            (json!({"ips": [{"address": "10.1.0.5/33"}]}), "prevResult.ips[0].address"),
            (json!({"ips": [{}]}), "prevResult.ips[0].address"),
            (json!({"routes": [{}]}), "prevResult.routes[0].dst"),
            (json!({"interfaces": [{"name": "x", "mac": "zz"}]}), "prevResult.interfaces[0].mac"),
            (json!({"interfaces": 3}), "prevResult.interfaces"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.msg.contains(path), "{error}");
        }
    }
}
