//! What the kernel and the plugin have on each node beside what the API says: reservations and links of Pods, the ways to the other nodes,
//! and what leads connections to endpoints.
//!
//! Invariant: both sides are read anew at each try; what the API says is worked out here, from its objects, without a line of our programs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};
use serde_json::Value;

use super::Cluster;
use super::node::Node;

/// Until a node has what the API says, generous for a busy machine.
const SOON: Duration = Duration::from_secs(60);
const FLANNEL: &str = "flannel.alpha.coreos.com";

/// Where a Service is reached (`192.168.0.10 tcp 80`, `tcp 30080`), with its endpoints (`172.7.0.2 8080`) in order; without any it is refused.
/// Those of a node alone are there once more where clients outside are led to them and there are others.
type Frontends = BTreeMap<String, Vec<String>>;

impl Cluster {
    /// Waits until every node has what the API says and nothing else.
    pub(crate) fn equals(&self) -> Result<()> {
        for node in &self.nodes {
            eventually(SOON, || {
                self.pods_equal(node)?;
                self.ways_equal(node)?;
                self.services_equal(node)
            })
            .with_context(|| format!("{} beside the API", node.host.name()))?;
        }
        Ok(())
    }

    /// A reservation and a link for each Pod with a network of its own.
    fn pods_equal(&self, node: &Node) -> Result<()> {
        let pods = self.items("/api/v1/pods")?;
        let own =
            pods.iter().filter(|pod| pod["spec"]["nodeName"] == node.host.name() && pod["spec"]["hostNetwork"] != true);
        let wanted: BTreeSet<String> = own.map(|pod| text(pod, "/status/podIP")).collect();
        let kept = node.reservations()?;
        ensure!(kept == wanted, "reservations are {kept:?}, Pods have {wanted:?}");
        let links = node.host.run(&["bash", "-c", "ip -o link show type veth | grep -c 'master cbr0' || true"])?.stdout;
        ensure!(links.trim() == wanted.len().to_string(), "{} Pods and {} links", wanted.len(), links.trim());
        Ok(())
    }

    /// A forwarding entry, a neighbour and a route for each other Node.
    fn ways_equal(&self, node: &Node) -> Result<()> {
        let mut wanted = BTreeSet::new();
        for other in self.items("/api/v1/nodes")?.iter().filter(|one| text(one, "/metadata/name") != node.host.name()) {
            let said = |name: &str| {
                let value = other["metadata"]["annotations"][format!("{FLANNEL}/{name}")].as_str();
                value.with_context(|| format!("{} has no annotation {name}", other["metadata"]["name"]))
            };
            let data: Value = serde_json::from_str(said("backend-data")?)?;
            let (mac, cidr) = (text(&data, "/VtepMAC"), text(other, "/spec/podCIDR"));
            let first = cidr.split('/').next().unwrap_or_default();
            wanted.insert(format!("{mac} to {}", said("public-ip")?));
            wanted.insert(format!("{first} at {mac}"));
            wanted.insert(format!("{cidr} via {first}"));
        }
        let mut found = BTreeSet::new();
        for (words, between) in [
            (["bridge", "fdb", "show", "dev", "flannel.1"], "to"),
            (["ip", "neigh", "show", "dev", "flannel.1"], "at"),
            (["ip", "route", "show", "proto", "121"], "via"),
        ] {
            for line in node.host.run(&words)?.stdout.lines() {
                let parts: Vec<&str> = line.split_whitespace().collect();
                let [one, two] = [0, 2].map(|place| parts.get(place).copied().unwrap_or_default());
                found.insert(format!("{one} {between} {two}"));
            }
        }
        ensure!(found == wanted, "ways are {found:#?}, not {wanted:#?}");
        Ok(())
    }

    /// An element, or a virtual or real server, for each port of a Service and for each of its endpoints.
    fn services_equal(&self, node: &Node) -> Result<()> {
        let wanted = self.frontends(node.host.name())?;
        let found = if node.is_on_ipvs() { virtual_servers(&node.host)? } else { elements(&node.host)? };
        ensure!(found == wanted, "Services are led to {found:#?}, not {wanted:#?}");
        Ok(())
    }

    /// What the Services and their slices ask of a node. Of policies, that of external traffic is known here.
    fn frontends(&self, node: &str) -> Result<Frontends> {
        let slices = self.items(&format!("/apis/{}/endpointslices", self.server.release().slices()))?;
        let mut wanted = Frontends::new();
        for service in self.items("/api/v1/services")? {
            let of = |slice: &&Value| {
                slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
                    && slice["metadata"]["namespace"] == service["metadata"]["namespace"]
            };
            let address = text(&service, "/spec/clusterIP");
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let protocol = text(port, "/protocol").to_lowercase();
                let all = |node| slices.iter().filter(of).flat_map(move |slice| endpoints(slice, port, node));
                let mut everywhere: Vec<String> = all(None).collect();
                everywhere.sort();
                wanted.insert(format!("{address} {protocol} {}", port["port"]), everywhere.clone());
                if let Some(number) = port["nodePort"].as_u64().filter(|number| *number > 0) {
                    let is_local = service["spec"]["externalTrafficPolicy"] == "Local";
                    let mut led = everywhere;
                    // One list serves both kinds of clients where every endpoint is of the node.
                    let own: Vec<String> = all(Some(node)).collect();
                    if is_local && own.len() < led.len() {
                        led.extend(own);
                    }
                    led.sort();
                    wanted.insert(format!("{protocol} {number}"), led);
                }
            }
        }
        Ok(wanted)
    }
}

/// The ready endpoints in a slice of a Service's port; only those of a node where it is named.
fn endpoints(slice: &Value, port: &Value, node: Option<&str>) -> Vec<String> {
    let same = |one: &Value| {
        let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
        name(one) == name(port) && one["protocol"] == port["protocol"]
    };
    let number = slice["ports"].as_array().into_iter().flatten().find(|one| same(one)).map(|one| one["port"].clone());
    let Some(number) = number else { return Vec::new() };
    let is_used = |endpoint: &&Value| {
        endpoint["conditions"]["ready"] != false
            && node.is_none_or(|node| endpoint["topology"]["kubernetes.io/hostname"] == node)
    };
    let used = slice["endpoints"].as_array().into_iter().flatten().filter(is_used);
    used.map(|endpoint| format!("{} {number}", text(endpoint, "/addresses/0"))).collect()
}

/// What IPVS does on a node; a real server without weight gets no connection any more. A node port has a virtual server at each address of the
/// node, and leads everywhere to the same.
fn virtual_servers(host: &Host) -> Result<Frontends> {
    let mut all = BTreeMap::<(&str, &str, &str), Vec<String>>::new();
    let saved = host.run(&["ipvsadm", "--save", "--numeric"])?.stdout;
    for line in saved.lines() {
        // `-A -t 192.168.0.10:80 -s rr`, `-a -t 192.168.0.10:80 -r 172.7.0.2:8080 -m -w 1`
        let words: Vec<&str> = line.split(' ').collect();
        let (protocol, at) = (if words[1] == "-u" { "udp" } else { "tcp" }, words[2].rsplit_once(':'));
        let (address, port) = at.with_context(|| line.to_owned())?;
        let endpoints = all.entry((address, protocol, port)).or_default();
        if words[0] == "-a" && !line.ends_with("-w 0") {
            endpoints.push(words[4].replace(':', " "));
        }
    }
    let addresses = host.run(&["sh", "-c", "ip -o -4 address show | grep -v ' kube-ipvs0 '"])?.stdout;
    let own: BTreeSet<&str> =
        addresses.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()).collect();
    let mut found = Frontends::new();
    for ((address, protocol, port), mut endpoints) in all {
        endpoints.sort();
        let is_of_node = own.contains(address);
        let key = if is_of_node { format!("{protocol} {port}") } else { format!("{address} {protocol} {port}") };
        let known = found.entry(key).or_insert_with(|| endpoints.clone());
        ensure!(
            *known == endpoints,
            "{address} {protocol} {port} leads to {endpoints:?}, another address to {known:?}"
        );
    }
    Ok(found)
}

/// What the table of ipvs-proxy does on a node.
fn elements(host: &Host) -> Result<Frontends> {
    let mut found = Frontends::new();
    for (served, chosen, refused) in
        [("services", "endpoints", "refused"), ("node-ports", "node-endpoints", "refused-node-ports")]
    {
        for element in listed(host, "map", served)? {
            found.insert(element, Vec::new());
        }
        for element in listed(host, "map", chosen)? {
            // The address or nothing, protocol, port, a number, then the endpoint's address and port.
            let words: Vec<&str> = element.split(' ').collect();
            let (key, value) = words.split_at(words.len().saturating_sub(3));
            let endpoints = found.get_mut(&key.join(" ")).with_context(|| format!("{element} leads from nowhere"))?;
            endpoints.push(value[1..].join(" "));
        }
        found.values_mut().for_each(|endpoints| endpoints.sort());
        let empty: Vec<_> = found.iter().filter(|(_, endpoints)| endpoints.is_empty()).collect();
        ensure!(empty.is_empty(), "served without an endpoint: {empty:?}");
        for element in listed(host, "set", refused)? {
            ensure!(found.insert(element.clone(), Vec::new()).is_none(), "{element} is served and refused");
        }
    }
    Ok(found)
}

/// The elements of a set or the keys and addresses of a map, each its words; what a verdict map leads to is left out.
fn listed(host: &Host, kind: &str, name: &str) -> Result<Vec<String>> {
    let said = host.run(&["nft", "-j", "list", kind, "ip", "ipvs-proxy", name])?.stdout;
    let said: Value = serde_json::from_str(&said)?;
    let all = said["nftables"].as_array().into_iter().flatten();
    let elements = all.filter_map(|one| one[kind]["elem"].as_array()).flatten();
    Ok(elements.map(|element| words(element).join(" ")).collect())
}

fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        Value::Array(parts) => parts.iter().flat_map(words).collect(),
        Value::Object(members) => {
            let inner = ["concat", "elem", "val"].iter().filter_map(|name| members.get(*name));
            inner.flat_map(words).collect()
        }
        Value::Null | Value::Bool(_) => Vec::new(),
    }
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
