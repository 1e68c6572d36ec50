//! The IPv6 twin of an object: the same with IPv6 addresses, another name, and node ports that are 1000 higher.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value, json};

/// What the names of twins end with.
pub const SUFFIX: &str = "-v6";

/// The twin of a key such as `Service/default/web`.
#[must_use]
pub fn key(key: &str) -> String {
    format!("{key}{SUFFIX}")
}

/// The twin of an address: 172.7.21.11 is `fd00:7:21::11`, the digits of the last number stay.
///
/// # Panics
/// For an address that the cases do not have.
#[must_use]
pub fn address(addr: IpAddr) -> IpAddr {
    let IpAddr::V4(v4) = addr else { panic!("{addr} is no address of IPv4") };
    let network = match v4.octets() {
        [172, 7, node, _] => format!("fd00:7:{node}"),
        [10, 4, 7, _] => "fd00:4:7".to_owned(),
        [10, 96, 7, _] => "fd00:10:96".to_owned(),
        [203, 0, 113, _] => "fd00:203".to_owned(),
        [198, 51, 100, _] => "fd00:198".to_owned(),
        [127, 0, 0, 1] => return "::1".parse().unwrap(),
        _ => panic!("{addr} has no twin"),
    };
    match v4.octets()[3] {
        0 => format!("{network}::").parse().unwrap(),
        last => format!("{network}::{last}").parse().unwrap(),
    }
}

/// The twin of an object.
#[must_use]
pub fn object(object: &Value) -> Value {
    let mut twin = object.clone();
    if let Some(name) = twin.pointer_mut("/metadata/name") {
        *name = json!(format!("{}{SUFFIX}", name.as_str().unwrap_or_default()));
    }
    if let Some(label) = twin.pointer_mut("/metadata/labels/kubernetes.io~1service-name") {
        *label = json!(format!("{}{SUFFIX}", label.as_str().unwrap_or_default()));
    }
    if let Some(map) = twin.as_object_mut() {
        map.iter_mut().filter(|(key, _)| *key != "metadata").for_each(|(_, value)| fields(value));
        map.entry("addressType").and_modify(|kind| *kind = json!("IPv6"));
    }
    twin
}

fn fields(value: &mut Value) {
    match value {
        Value::String(text) => *value = json!(text_of(text)),
        Value::Array(items) => items.iter_mut().for_each(fields),
        Value::Object(map) => {
            map.values_mut().for_each(fields);
            for port in ["nodePort", "healthCheckNodePort"] {
                higher(map, port);
            }
        }
        _ => {}
    }
}

fn higher(map: &mut Map<String, Value>, port: &str) {
    if let Some(number) = map.get(port).and_then(Value::as_u64) {
        map.insert(port.to_owned(), json!(number + 1000));
    }
}

fn text_of(text: &str) -> String {
    if text == "IPv4" {
        return "IPv6".to_owned();
    }
    let (addr, len) = text.trim().split_once('/').map_or((text.trim(), None), |(addr, len)| (addr, Some(len)));
    let Ok(v4) = addr.parse::<Ipv4Addr>() else { return text.to_owned() };
    if len == Some("0") {
        return text.replace(text.trim(), "::/0");
    }
    let twin = address(v4.into()).to_string();
    let len = match len {
        None => return twin,
        Some("32") => 128,
        Some("24") => 64,
        Some("16") => 32,
        Some(other) => panic!("a range of length {other} has no twin"),
    };
    let range = if len == 32 { format!("fd00:7::/{len}") } else { format!("{twin}/{len}") };
    text.replace(text.trim(), &range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_is_the_same_in_ipv6() {
        let service = json!({
            "kind": "Service", "metadata": {"name": "a"},
            "spec": {
                "clusterIP": "10.96.7.1", "ipFamilies": ["IPv4"], "ports": [{"name": "http", "nodePort": 30_001}],
                "loadBalancerSourceRanges": [" 10.4.7.200/32 ", "172.7.0.0/16", "172.7.21.0/24"],
            },
        });
        let expected = json!({
            "kind": "Service", "metadata": {"name": "a-v6"},
            "spec": {
                "clusterIP": "fd00:10:96::1", "ipFamilies": ["IPv6"], "ports": [{"name": "http", "nodePort": 31_001}],
                "loadBalancerSourceRanges": [" fd00:4:7::200/128 ", "fd00:7::/32", "fd00:7:21::/64"],
            },
        });
        assert_eq!(object(&service), expected);
    }
}
