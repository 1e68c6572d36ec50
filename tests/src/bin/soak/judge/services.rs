//! What the kernel of a node serves is what the Services ask for, no more and no less, read without the proxy's help.
//!
//! Invariant: a server is a protocol with an address and a port, and each of its endpoints a row of its own. Real servers of weight 0 get no new
//! connection and are passed over: one that should have another weight is missing, and one that drains goes when its last connection does.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;

/// A Service as the schedule wants it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) address: SocketAddr,
    pub(crate) node_port: u16,
    /// Addresses of Pods, with their port.
    pub(crate) endpoints: Vec<SocketAddr>,
}

/// The rows that these Services ask for at a node whose node ports are at `at`.
pub(crate) fn wanted(services: &[Wanted], at: &[Ipv4Addr]) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for service in services {
        rows.insert(format!("address {}", service.address.ip()));
        let ports = at.iter().map(|address| SocketAddr::from((*address, service.node_port)));
        for server in ports.chain([service.address]) {
            for protocol in ["tcp", "udp"] {
                rows.insert(format!("{protocol} {server}"));
                rows.extend(service.endpoints.iter().map(|endpoint| format!("{protocol} {server} to {endpoint}")));
            }
        }
    }
    rows
}

/// The rows of `nft -j list table ip ipvs-proxy`.
pub(crate) fn of_nftables(table: &Value) -> BTreeSet<String> {
    let elements = |name: &str| -> Vec<Value> {
        let items = table.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let sets = items.filter_map(|item| item.get("map").or_else(|| item.get("set")));
        let named = sets.filter(|set| set.get("name").and_then(Value::as_str) == Some(name));
        named.filter_map(|set| set.get("elem")?.as_array()).flatten().cloned().collect()
    };
    let at: Vec<String> = elements("node-port-addresses").iter().map(|one| words(one).join(".")).collect();
    let mut rows: BTreeSet<String> =
        elements("vips").iter().map(|one| format!("address {}", words(one).join("."))).collect();
    for element in elements("services") {
        if let [address, protocol, port] = key(&element).as_slice() {
            rows.insert(format!("{protocol} {address}:{port}"));
        }
    }
    for element in elements("endpoints") {
        if let ([address, protocol, port, _], [pod, to]) = (key(&element).as_slice(), value(&element).as_slice()) {
            rows.insert(format!("{protocol} {address}:{port} to {pod}:{to}"));
        }
    }
    for address in at {
        for element in elements("node-ports") {
            if let [protocol, port] = key(&element).as_slice() {
                rows.insert(format!("{protocol} {address}:{port}"));
            }
        }
        for element in elements("node-endpoints") {
            if let ([protocol, port, _], [pod, to]) = (key(&element).as_slice(), value(&element).as_slice()) {
                rows.insert(format!("{protocol} {address}:{port} to {pod}:{to}"));
            }
        }
    }
    rows
}

/// The key of an element of a map, and its value.
fn key(element: &Value) -> Vec<String> {
    element.get(0).map(words).unwrap_or_default()
}

fn value(element: &Value) -> Vec<String> {
    element.get(1).map(words).unwrap_or_default()
}

/// The parts of a value that may be put together, or stand beside a counter.
fn words(value: &Value) -> Vec<String> {
    match (value.get("elem").and_then(|elem| elem.get("val")), value.get("concat").and_then(Value::as_array), value) {
        (Some(inner), ..) => words(inner),
        (_, Some(parts), _) => parts.iter().flat_map(words).collect(),
        (.., Value::String(text)) => vec![text.clone()],
        (.., Value::Number(number)) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

/// The rows of `ipvsadm -Sn` and of `ip -4 -o address show dev kube-ipvs0`.
pub(crate) fn of_ipvs(servers: &str, addresses: &str) -> BTreeSet<String> {
    let mut rows: BTreeSet<String> = addresses_of(addresses).map(|(_, address)| format!("address {address}")).collect();
    for line in servers.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [form, protocol, server, options @ ..] = words.as_slice() else { continue };
        let protocol = if *protocol == "-t" { "tcp" } else { "udp" };
        let option = |name: &str| options.iter().skip_while(|word| **word != name).nth(1);
        match (*form, option("-r")) {
            ("-A", _) if options.contains(&"-p") => rows.insert(format!("{protocol} {server} for persistent clients")),
            ("-A", _) => rows.insert(format!("{protocol} {server}")),
            (_, Some(pod)) if option("-w") != Some(&"0") => rows.insert(format!("{protocol} {server} to {pod}")),
            _ => false,
        };
    }
    rows
}

/// Links and addresses, as `ip -4 -o address` prints them.
fn addresses_of(text: &str) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let link = words.next()?;
        let address = words.nth(1)?.split('/').next()?.parse().ok()?;
        Some((link, address))
    })
}

/// The addresses at which a node has its node ports in the mode ipvs: all but those of loopback and of the virtual ones' device.
pub(crate) fn of_node_ports(addresses: &str) -> Vec<Ipv4Addr> {
    let others = addresses_of(addresses).filter(|(link, _)| !["lo", "kube-ipvs0"].contains(link));
    others.map(|(_, address)| address).collect()
}

/// What is wrong with what a node serves.
pub(crate) fn of_node(name: &str, wanted: &BTreeSet<String>, held: &BTreeSet<String>) -> Option<String> {
    let missing: Vec<_> = wanted.difference(held).collect();
    let surplus: Vec<_> = held.difference(wanted).collect();
    (wanted != held).then(|| format!("Services of {name}: missing {missing:?}, surplus {surplus:?}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
mod tests {
    use super::*;

    const SERVERS: &str = "-A -t 10.4.7.31:30011 -s rr
-a -t 10.4.7.31:30011 -r 172.7.21.2:80 -m -w 1
-A -u 10.4.7.31:30011 -s rr
-a -u 10.4.7.31:30011 -r 172.7.21.2:80 -m -w 1
-A -t 192.168.0.11:80 -s rr
-a -t 192.168.0.11:80 -r 172.7.21.2:80 -m -w 1
-a -t 192.168.0.11:80 -r 172.7.21.9:80 -m -w 0
-A -u 192.168.0.11:80 -s rr
-a -u 192.168.0.11:80 -r 172.7.21.2:80 -m -w 1
";
    const ADDRESSES: &str = "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
7: eth0    inet 10.4.7.31/24 brd 10.4.7.255 scope global eth0\\       valid_lft forever preferred_lft forever
";
    const VIRTUAL: &str = "9: kube-ipvs0    inet 192.168.0.11/32 scope global kube-ipvs0\\       valid_lft forever preferred_lft forever\n";

    fn services() -> Vec<Wanted> {
        let at = |text: &str| text.parse().unwrap();
        vec![Wanted { address: at("192.168.0.11:80"), node_port: 30011, endpoints: vec![at("172.7.21.2:80")] }]
    }

    fn judge(held: &BTreeSet<String>) -> Option<String> {
        let at = of_node_ports(&format!("{ADDRESSES}{VIRTUAL}"));
        of_node("n1", &wanted(&services(), &at), held)
    }

    #[test]
    fn virtual_and_real_servers_that_services_ask_for_pass_and_each_difference_is_found() {
        assert_eq!(judge(&of_ipvs(SERVERS, VIRTUAL)), None);
        for line in SERVERS.lines().filter(|line| !line.ends_with("-w 0")) {
            let found = judge(&of_ipvs(&SERVERS.replace(&format!("{line}\n"), ""), VIRTUAL)).unwrap();
            assert!(found.contains("missing [\"") && found.ends_with("surplus []"), "{found}");
            let found = judge(&of_ipvs(
                &format!("{SERVERS}{}", line.replace("0.11", "0.12").replace("21.2", "21.3").replace("30011", "30012")),
                VIRTUAL,
            ))
            .unwrap();
            assert!(found.contains("missing [], surplus [\""), "{found}");
        }
        let weight = SERVERS.replace("-r 172.7.21.2:80 -m -w 1", "-r 172.7.21.2:80 -m -w 0");
        assert!(judge(&of_ipvs(&weight, VIRTUAL)).is_some());
        assert!(judge(&of_ipvs(&SERVERS.replace("-s rr", "-s rr -p 60"), VIRTUAL)).is_some());
        assert!(judge(&of_ipvs(SERVERS, "")).unwrap().contains("missing [\"address 192.168.0.11\"]"));
        assert!(judge(&of_ipvs(SERVERS, &VIRTUAL.replace("0.11", "0.12"))).is_some());
    }

    /// The table with these elements in its maps and sets.
    fn table(change: impl Fn(&str, &mut Vec<Value>)) -> BTreeSet<String> {
        let element = |protocol: &str, key: &[&str]| {
            let mut parts: Vec<Value> = key.iter().map(|part| (*part).into()).collect();
            parts.push(protocol.into());
            parts
        };
        let key = |mut parts: Vec<Value>, more: &[u16]| {
            parts.extend(more.iter().map(|number| Value::from(*number)));
            serde_json::json!({"concat": parts})
        };
        let counted = |key: Value| serde_json::json!([{"elem": {"val": key, "counter": {"packets": 1, "bytes": 60}}}, {"goto": {"target": "c"}}]);
        let pod = serde_json::json!({"concat": ["172.7.21.2", 80]});
        let mut maps: Vec<(&str, Vec<Value>)> = vec![
            ("vips", vec!["192.168.0.11".into()]),
            ("node-port-addresses", vec!["10.4.7.31".into()]),
            ("draining", vec!["192.168.0.99".into()]),
        ];
        let both = |make: &dyn Fn(&str) -> Value| ["tcp", "udp"].map(make).to_vec();
        maps.push(("services", both(&|protocol| counted(key(element(protocol, &["192.168.0.11"]), &[80])))));
        maps.push((
            "endpoints",
            both(&|protocol| serde_json::json!([key(element(protocol, &["192.168.0.11"]), &[80, 0]), pod])),
        ));
        maps.push(("node-ports", both(&|protocol| counted(key(element(protocol, &[]), &[30011])))));
        maps.push((
            "node-endpoints",
            both(&|protocol| serde_json::json!([key(element(protocol, &[]), &[30011, 0]), pod])),
        ));
        let maps = maps.into_iter().map(|(name, mut elem)| {
            change(name, &mut elem);
            serde_json::json!({"map": {"family": "ip", "table": "ipvs-proxy", "name": name, "elem": elem}})
        });
        of_nftables(&serde_json::json!({"nftables": maps.collect::<Vec<_>>()}))
    }

    #[test]
    fn table_that_services_ask_for_passes_and_each_element_that_lacks_or_is_another_is_found() {
        assert_eq!(judge(&table(|_, _| {})), None);
        for map in ["vips", "node-port-addresses", "services", "endpoints", "node-ports", "node-endpoints"] {
            let without = table(|name, elements| {
                if name == map {
                    elements.truncate(elements.len() - 1)
                }
            });
            assert!(judge(&without).is_some_and(|found| found.ends_with("surplus []")), "{map}");
            let other = table(|name, elements| {
                let changed =
                    |text: String| text.replace("0.11", "0.12").replace("7.31", "7.32").replace("30011", "30012");
                if name == map {
                    let more: Vec<Value> = elements
                        .iter()
                        .map(|element| serde_json::from_str(&changed(element.to_string())).unwrap())
                        .collect();
                    elements.extend(more);
                }
            });
            assert!(judge(&other).is_some_and(|found| found.contains("missing []")), "{map}");
        }
    }
}
