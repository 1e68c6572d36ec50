//! The result of a plugin that is not the first of its chain: what is there is passed on, its own part comes behind.
//!
//! Invariant: nothing of the previous result is lost, unknown keys included; an index of the own part still names the
//! interface that it named.

use serde_json::{Map, Value, json};

/// `own` behind `previous`, both in the shape of one version. 0.1.0 and 0.2.0 have one place per family: there the own part
/// takes that of the previous one.
#[must_use]
pub(crate) fn behind(previous: Option<Value>, own: Value) -> Value {
    match (previous, own) {
        (Some(Value::Object(previous)), Value::Object(own)) => Value::Object(merged(previous, own)),
        (_, own) => own,
    }
}

fn merged(mut result: Map<String, Value>, own: Map<String, Value>) -> Map<String, Value> {
    let before = key_of(&result, "interfaces").and_then(|key| result.get(&key)?.as_array().map(Vec::len)).unwrap_or(0);
    for (name, mut value) in own {
        let key = key_of(&result, &name).unwrap_or_else(|| name.clone());
        if name == "ips" {
            value.as_array_mut().into_iter().flatten().for_each(|ip| shift(ip, before));
        }
        match (result.get_mut(&key), value) {
            (Some(Value::Array(there)), Value::Array(own)) => there.extend(own),
            // No name servers of its own: those of the others stay.
            (Some(Value::Object(_)), Value::Object(own)) if own.is_empty() => {}
            (_, own) => drop(result.insert(key, own)),
        }
    }
    result
}

/// The key as it is written there: in any case, as Go reads it.
fn key_of(map: &Map<String, Value>, name: &str) -> Option<String> {
    map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned()
}

fn shift(ip: &mut Value, by: usize) {
    let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
    if let (Some(map), Some(index)) = (ip.as_object_mut(), index) {
        map.insert("interface".to_owned(), json!(index + by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_part_comes_behind_and_its_indexes_with_it() {
        let loopback = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "lo", "sandbox": "/n"}], "x": [1],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}], "dns": {"nameservers": ["1.1.1.1"]}});
        let own = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "cbr0"}, {"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "172.7.21.2/24", "interface": 1}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}});
        assert_eq!(
            behind(Some(loopback), own.clone()),
            json!({"cniVersion": "1.1.0", "x": [1], "dns": {"nameservers": ["1.1.1.1"]},
                "interfaces": [{"name": "lo", "sandbox": "/n"}, {"name": "cbr0"}, {"name": "eth0", "sandbox": "/n"}],
                "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "172.7.21.2/24", "interface": 2}],
                "routes": [{"dst": "0.0.0.0/0"}]})
        );
        assert_eq!(behind(None, own.clone()), own);
        assert_eq!(behind(Some(Value::Null), own.clone()), own);
    }

    #[test]
    fn results_with_one_place_per_family_keep_the_other_family() {
        let previous =
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"}, "dns": {}});
        let own = json!({"cniVersion": "0.2.0", "ip4": {"ip": "172.7.21.2/24"}, "dns": {"nameservers": ["1.1.1.1"]}});
        assert_eq!(
            behind(Some(previous), own),
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "172.7.21.2/24"}, "ip6": {"ip": "::1/128"},
                "dns": {"nameservers": ["1.1.1.1"]}})
        );
    }
}
