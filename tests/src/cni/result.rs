//! A plugin's result as libcni keeps it: read into the structures of its version, turned into another version when the
//! configuration has changed since (`pkg/types`).
//!
//! Invariant: members that libcni's structures do not have are lost, as there; nothing else changes within one version.

use std::cmp::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::client::{Release, by_age};

/// Versions that print `ip4` and `ip6`.
const FLAT: [&str; 2] = ["0.1.0", "0.2.0"];
/// Versions whose addresses name their family.
const FAMILIES: [&str; 3] = ["0.3.0", "0.3.1", "0.4.0"];
const LATER: [&str; 2] = ["1.0.0", "1.1.0"];

/// Reads what a plugin printed: an answer without version has the configuration's, `null` is an empty answer
/// (`pkg/invoke/exec.go`, fixupResultVersion).
///
/// # Errors
/// When it is no JSON object or of a version the release has no structures for.
pub(crate) fn read(release: Release, asked: &str, printed: &str) -> Result<Value> {
    let answer: Value =
        serde_json::from_str(printed).with_context(|| format!("failed to unmarshal raw result: {printed:?}"))?;
    let mut members = match answer {
        Value::Null => Map::new(),
        Value::Object(members) => members,
        other => bail!("failed to unmarshal raw result: {other}"),
    };
    let version = members.get("cniVersion").and_then(Value::as_str).filter(|version| !version.is_empty());
    let version = version.unwrap_or(asked).to_owned();
    ensure!(is_known(release, &version), "unsupported CNI result version {version:?}");
    members.insert("cniVersion".to_owned(), json!(version));
    Ok(Value::Object(structured(release, &version, &members)))
}

fn is_known(release: Release, version: &str) -> bool {
    by_age(version, release.newest()) != Ordering::Greater
        && FLAT.iter().chain(&FAMILIES).chain(&LATER).any(|known| *known == version)
}

/// The members that the structures of a version have. An empty `dns` is left out by the newer release from 1.0.0 on.
fn structured(release: Release, version: &str, members: &Map<String, Value>) -> Map<String, Value> {
    let route = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];
    let mut kept = pick(members, &["cniVersion"]);
    if FLAT.contains(&version) {
        for family in ["ip4", "ip6"] {
            if let Some(Value::Object(of_family)) = members.get(family) {
                let mut config = pick(of_family, &["ip", "gateway"]);
                config.extend(list(of_family, "routes", &["dst", "gw"]));
                kept.insert(family.to_owned(), Value::Object(config));
            }
        }
    } else {
        kept.extend(list(members, "interfaces", &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"]));
        let with_family = ["version", "interface", "address", "gateway"];
        kept.extend(list(members, "ips", if FAMILIES.contains(&version) { &with_family } else { &with_family[1..] }));
        kept.extend(list(members, "routes", &route));
    }
    let dns = members.get("dns").and_then(Value::as_object).cloned().unwrap_or_default();
    let dns = pick(&dns, &["nameservers", "domain", "search", "options"]);
    if !dns.is_empty() || !LATER.contains(&version) || release == Release::V1_1 {
        kept.insert("dns".to_owned(), Value::Object(dns));
    }
    kept
}

fn pick(members: &Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let wanted = members.iter().filter(|(name, _)| names.contains(&name.as_str()));
    wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn list(members: &Map<String, Value>, name: &str, of: &[&str]) -> Option<(String, Value)> {
    let objects = members.get(name)?.as_array()?.iter().filter_map(Value::as_object);
    let kept: Vec<Value> = objects.map(|object| Value::Object(pick(object, of))).collect();
    (!kept.is_empty()).then(|| (name.to_owned(), Value::Array(kept)))
}

/// Turns a cached result into the version the configuration has now.
///
/// # Errors
/// When it names no known version, or has no address and the older form needs one.
pub(crate) fn convert(release: Release, result: &Value, to: &str) -> Result<Value> {
    let members = result.as_object().context("cached result is no object")?;
    let from = members.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    ensure!(is_known(release, from), "unsupported CNI result version {from:?}");
    ensure!(is_known(release, to), "cannot convert version {from:?} to {to:?}");
    let mut members = members.clone();
    if FLAT.contains(&from) && !FLAT.contains(&to) {
        members = raised(&members);
    } else if !FLAT.contains(&from) && FLAT.contains(&to) {
        members = lowered(&members)?;
    }
    if FAMILIES.contains(&to) {
        for ip in members.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            let family = if has_ipv6(ip, "address") { "6" } else { "4" };
            ip.as_object_mut().map(|ip| ip.insert("version".to_owned(), json!(family)));
        }
    }
    members.insert("cniVersion".to_owned(), json!(to));
    Ok(Value::Object(structured(release, to, &members)))
}

/// `ip4` and `ip6` as lists.
fn raised(members: &Map<String, Value>) -> Map<String, Value> {
    let mut raised = pick(members, &["dns"]);
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for config in ["ip4", "ip6"].iter().filter_map(|family| members.get(*family)?.as_object()) {
        let mut ip = pick(config, &["gateway"]);
        ip.insert("address".to_owned(), config.get("ip").cloned().unwrap_or_default());
        ips.push(Value::Object(ip));
        routes.extend(config.get("routes").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    raised.insert("ips".to_owned(), Value::Array(ips));
    raised.insert("routes".to_owned(), Value::Array(routes));
    raised
}

/// The first address of each family, with the routes of that family.
fn lowered(members: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut lowered = pick(members, &["dns"]);
    let objects = |name: &str| members.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    for (family, ipv6) in [("ip4", false), ("ip6", true)] {
        let Some(first) = objects("ips").into_iter().find(|ip| has_ipv6(ip, "address") == ipv6) else { continue };
        let mut config = pick(first.as_object().context("an address that is no object")?, &["gateway"]);
        config.insert("ip".to_owned(), first.get("address").cloned().unwrap_or_default());
        let routes: Vec<Value> = objects("routes").into_iter().filter(|route| has_ipv6(route, "dst") == ipv6).collect();
        config.insert("routes".to_owned(), Value::Array(routes));
        lowered.insert(family.to_owned(), Value::Object(config));
    }
    ensure!(lowered.contains_key("ip4") || lowered.contains_key("ip6"), "cannot convert: no valid IP addresses");
    Ok(lowered)
}

/// Whether a member of an object is an IPv6 address or prefix.
fn has_ipv6(object: &Value, member: &str) -> bool {
    object.get(member).and_then(Value::as_str).is_some_and(|text| text.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> Value {
        json!({"cniVersion": "1.0.0",
            "interfaces": [{"name": "cbr0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"interface": 1, "address": "172.7.21.2/24", "gateway": "172.7.21.1"}, {"interface": 1, "address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}]})
    }

    #[test]
    fn answer_is_read_as_libcni_reads_it() {
        for (release, asked, printed, expected) in [
            (Release::V1_3, "1.0.0", "null", Ok(json!({"cniVersion": "1.0.0"}))),
            (Release::V1_3, "0.4.0", "{\"foo\":1}", Ok(json!({"cniVersion": "0.4.0", "dns": {}}))),
            (Release::V1_3, "1.0.0", "{\"cniVersion\":\"\"}", Ok(json!({"cniVersion": "1.0.0"}))),
            (Release::V1_1, "1.0.0", "{\"cniVersion\":\"1.1.0\"}", Err("unsupported CNI result version \"1.1.0\"")),
            (Release::V1_3, "1.0.0", "{\"cniVersion\":\"1.1.0\"}", Ok(json!({"cniVersion": "1.1.0"}))),
            (Release::V1_3, "1.0.0", "{\"cniVersion\":\"9.9.9\"}", Err("unsupported CNI result version \"9.9.9\"")),
            (Release::V1_3, "1.0.0", "", Err("failed to unmarshal raw result")),
            (Release::V1_3, "1.0.0", "{}{}", Err("failed to unmarshal raw result")),
        ] {
            match (read(release, asked, printed), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{printed}"),
                (Err(error), Err(expected)) => assert!(format!("{error:#}").contains(expected), "{error:#}"),
                (found, expected) => panic!("{printed}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn members_unknown_to_the_structures_are_lost() {
        let printed = r#"{"cniVersion":"1.0.0","x":1,"interfaces":[{"name":"eth0","y":2}],"ips":[{"address":"10.0.0.2/24","version":"4"}]}"#;
        assert_eq!(
            read(Release::V1_3, "1.0.0", printed).unwrap(),
            json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24"}]})
        );
    }

    #[test]
    fn result_goes_through_every_version_and_back() {
        let mut lists = dual();
        for version in ["1.1.0", "0.4.0", "0.3.1", "0.3.0", "1.0.0"] {
            lists = convert(Release::V1_3, &lists, version).unwrap();
            assert_eq!(lists["cniVersion"], version);
            assert_eq!(lists["ips"][1].get("version").is_some(), FAMILIES.contains(&version), "{lists}");
        }
        assert_eq!(lists, dual());
        let flat = convert(Release::V1_3, &dual(), "0.2.0").unwrap();
        assert_eq!(
            flat,
            json!({"cniVersion": "0.2.0", "dns": {},
                "ip4": {"ip": "172.7.21.2/24", "gateway": "172.7.21.1", "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]}})
        );
        let again = convert(Release::V1_3, &flat, "1.0.0").unwrap();
        assert_eq!(again["ips"][0], json!({"address": "172.7.21.2/24", "gateway": "172.7.21.1"}));
        assert_eq!(again["routes"], dual()["routes"]);
    }

    #[test]
    fn result_without_address_has_no_old_form() {
        let error = convert(Release::V1_3, &json!({"cniVersion": "1.0.0"}), "0.2.0").unwrap_err();
        assert!(error.to_string().contains("no valid IP addresses"), "{error}");
        assert!(convert(Release::V1_1, &json!({"cniVersion": "1.1.0"}), "1.0.0").is_err());
    }
}
