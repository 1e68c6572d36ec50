//! From the tree of a file to a [`Topology`].
//!
//! Invariant: every field that cannot be read is a finding and is missing from the topology; the others are there, so that
//! they are checked as well.

use std::net::IpAddr;

use super::{
    Backend, Binaries, Deviations, Endpoint, Host, HostName, Networks, Pods, Ports, SubnetPolicy, Switch, Topology,
    Versions,
};
use crate::document::{Fields, Findings, Form, Located, Node, Position, elements, entries, scalar};

/// What was read, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Reading {
    /// What could be read of the topology; nothing of a file that is no map.
    pub(crate) topology: Option<Topology>,
    /// What is wrong with the form of its fields.
    pub(crate) findings: Findings,
}

/// Reads the tree of a file.
pub(crate) fn read(document: &Node) -> Reading {
    let mut findings = Findings::default();
    let topology = topology(document, &mut findings);
    Reading { topology, findings }
}

fn topology(document: &Node, findings: &mut Findings) -> Option<Topology> {
    let mut fields = Fields::of(document, "", findings)?;
    let cluster = fields.required("cluster", findings);
    let domain = fields.optional("domain", findings);
    let networks = fields.require("networks", "networks of nodes, pods and services", findings);
    let networks = networks.and_then(|node| read_networks(node, findings));
    let pods = read_pods(fields.take("pods"), document.at, findings);
    let endpoint = fields.optional::<Endpoint>("endpoint", findings);
    let endpoint = endpoint.map(|found| Endpoint { at: found.at, ..found.value });
    let etcd_prefix = fields.optional("etcdPrefix", findings);
    let versions = fields.require("versions", "kubernetes: 1.20.2, etcd: 3.4.23, containerd: 1.6.20", findings);
    let versions = versions.map_or_else(Versions::default, |node| read_versions(node, "versions", findings));
    let binaries = fields.take("binaries");
    let binaries = binaries.map_or_else(Binaries::default, |node| read_binaries(node, "binaries", findings));
    let ports = fields.take("ports").map_or_else(Ports::default, |node| Ports::read(node, findings));
    let deviations = Deviations::take(&mut fields, findings);
    let hosts = fields.require("hosts", "a map of host names", findings);
    let hosts = hosts.map_or_else(Vec::new, |node| read_hosts(node, findings));
    fields.finish(findings);
    Some(Topology {
        cluster,
        domain,
        networks: networks.unwrap_or_default(),
        pods,
        endpoint,
        etcd_prefix,
        versions,
        binaries,
        ports,
        deviations,
        hosts,
    })
}

fn read_networks(node: &Node, findings: &mut Findings) -> Option<Networks> {
    let mut fields = Fields::of(node, "networks", findings)?;
    let nodes = list(&mut fields, "nodes", findings);
    let pods = list(&mut fields, "pods", findings);
    let services = list(&mut fields, "services", findings);
    fields.finish(findings);
    Some(Networks { nodes, pods, services })
}

/// The values of the field `name`, one or a list of them, at least one.
fn list<T: Form>(fields: &mut Fields<'_>, name: &'static str, findings: &mut Findings) -> Vec<Located<T>> {
    let path = fields.path(name);
    let Some(node) = fields.require(name, T::ACCEPTED, findings) else { return Vec::new() };
    if elements(node).is_empty() {
        findings.error(node.at, &path, "an empty list", T::ACCEPTED);
    }
    elements(node).iter().filter_map(|one| scalar(one, &path, findings)).collect()
}

fn read_pods(node: Option<&Node>, at: Position, findings: &mut Findings) -> Pods {
    let mut pods = Pods {
        subnets: Located { at, value: SubnetPolicy::NodeIp },
        subnet_length: Located { at, value: 24 },
        backend: Located { at, value: Backend::Vxlan },
    };
    let Some(mut fields) = node.and_then(|node| Fields::of(node, "pods", findings)) else { return pods };
    let subnets = fields.optional("subnets", findings);
    let length = fields.optional::<SubnetLength>("subnetLength", findings);
    let backend = fields.optional("backend", findings);
    fields.finish(findings);
    pods.subnets = subnets.unwrap_or(pods.subnets);
    pods.subnet_length = length.map_or(pods.subnet_length, |found| Located { at: found.at, value: found.value.0 });
    pods.backend = backend.unwrap_or(pods.backend);
    pods
}

/// Bits of the network in a node's IPv4 subnet.
struct SubnetLength(u8);

impl Form for SubnetLength {
    const ACCEPTED: &str = "bits of a node's IPv4 subnet, 16 to 28";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(|bits| (16..=28).contains(bits)).map(Self).ok_or_else(String::new)
    }
}

impl Form for Endpoint {
    const ACCEPTED: &str = "an address with or without a port, such as 10.4.7.10:7443";

    fn read(text: &str) -> Result<Self, String> {
        let at = Position { line: 0, column: 0 };
        if let Ok(address) = IpAddr::read(text) {
            return Ok(Self { at, address, port: None });
        }
        let (address, port) = text.rsplit_once(':').ok_or_else(String::new)?;
        let inside = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = IpAddr::read(inside.unwrap_or(address))?;
        if address.is_ipv6() != inside.is_some() {
            return Err(String::new());
        }
        Ok(Self { at, address, port: Some(u16::read(port)?) })
    }
}

fn read_versions(node: &Node, path: &str, findings: &mut Findings) -> Versions {
    let Some(mut fields) = Fields::of(node, path, findings) else { return Versions::default() };
    let versions = Versions {
        kubernetes: fields.optional("kubernetes", findings),
        etcd: fields.optional("etcd", findings),
        containerd: fields.optional("containerd", findings),
    };
    fields.finish(findings);
    versions
}

fn read_binaries(node: &Node, path: &str, findings: &mut Findings) -> Binaries {
    let Some(mut fields) = Fields::of(node, path, findings) else { return Binaries::default() };
    let binaries = Binaries {
        kubernetes: fields.optional("kubernetes", findings),
        etcd: fields.optional("etcd", findings),
        containerd: fields.optional("containerd", findings),
        netd: fields.optional("netd", findings),
    };
    fields.finish(findings);
    binaries
}

fn read_hosts(node: &Node, findings: &mut Findings) -> Vec<Host> {
    let Some(map) = entries(node, "hosts", "a map of host names", findings) else { return Vec::new() };
    if map.is_empty() {
        findings.error(node.at, "hosts", "nothing", "a map of host names");
    }
    let mut hosts = Vec::new();
    for entry in map {
        let path = format!("hosts.{}", entry.key);
        if let Err(why) = HostName::read(&entry.key) {
            let why = if why.is_empty() { "it is no name of a host" } else { &why };
            findings.error(entry.at, &path, why, HostName::ACCEPTED);
        }
        let name = Located { at: entry.at, value: entry.key.clone() };
        hosts.extend(read_host(&entry.value, name, &path, findings));
    }
    hosts
}

fn read_host(node: &Node, name: Located<String>, path: &str, findings: &mut Findings) -> Option<Host> {
    let mut fields = Fields::of(node, path, findings)?;
    let addresses = list(&mut fields, "address", findings);
    let roles = list(&mut fields, "roles", findings);
    let path_of = |name: &str| format!("{path}.{name}");
    let versions = fields.take("versions");
    let versions = versions.map_or_else(Versions::default, |node| read_versions(node, &path_of("versions"), findings));
    let binaries = fields.take("binaries");
    let binaries = binaries.map_or_else(Binaries::default, |node| read_binaries(node, &path_of("binaries"), findings));
    let joins = fields.optional::<Switch>("joins", findings).is_some_and(|found| found.value == Switch::On);
    fields.finish(findings);
    Some(Host { name, addresses, roles, versions, binaries, joins })
}
