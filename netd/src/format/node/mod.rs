//! A Node of Kubernetes as a lease: flannel's annotations and the podCIDRs (pkg/subnet/kube).
//!
//! Names and values are flannel's to the byte, so that nodes of both are one network. Three readings are milder: a Node that
//! says something usable of one family of two is served in it (flannel passes over the Node), an overwriting annotation that
//! is no address counts for nothing (flannel announces it as it stands), and what belongs to a family that the network does
//! not have is not read. Invariant: of a Node nothing is kept but what is read here.

mod patch;
mod prefix;
mod wire;

use std::net::IpAddr;

use netstate::Prefix;
use netstate::family::{IpFamily, PerFamily};
use serde_json::value::{RawValue, to_raw_value};

use super::lease::{DATA, Lease, LeaseAttrs, SubnetKey};
use crate::choose::interface::no_host;
use cluster::Problem;
pub(crate) use patch::{Condition, Observed, annotations_patch, condition_patch};
pub(crate) use prefix::{AnnotationPrefix, DEFAULT as DEFAULT_PREFIX};
pub(crate) use wire::{Node, OwnNode};

/// What the nodes that share the network have in these annotations.
const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";
const BACKEND_DATA: PerFamily<&str> = PerFamily::new("backend-data", "backend-v6-data");
const PUBLIC_IP: PerFamily<&str> = PerFamily::new("public-ip", "public-ipv6");

/// What an operator writes there: another address for the other nodes, and another one in place of `--public-ip`.
const OVERWRITE: PerFamily<&str> = PerFamily::new("public-ip-overwrite", "public-ipv6-overwrite");
const NODE_PUBLIC_IP: PerFamily<&str> = PerFamily::new("node-public-ip", "node-public-ipv6");

/// Every name behind the prefix.
const NAMES: [&str; 10] = [
    MANAGED,
    BACKEND_TYPE,
    BACKEND_DATA.v4,
    BACKEND_DATA.v6,
    PUBLIC_IP.v4,
    PUBLIC_IP.v6,
    OVERWRITE.v4,
    OVERWRITE.v6,
    NODE_PUBLIC_IP.v4,
    NODE_PUBLIC_IP.v6,
];

/// What flannel writes for a backend without data.
const NO_DATA: &str = "null";

/// The families that the network has.
pub(crate) type Families = PerFamily<bool>;

impl AnnotationPrefix {
    /// The lease that a Node shows; `None` for one that no subnet manager of this prefix has marked.
    pub(crate) fn lease(&self, node: &Node, families: Families) -> Option<Result<Lease, String>> {
        (self.get(node, MANAGED) == Some("true")).then(|| {
            let key = self.key(node, families)?;
            Ok(Lease { key, attrs: self.attrs(node, &key)? })
        })
    }

    /// The subnets of a Node, of the network's families.
    ///
    /// # Errors
    /// When it has none, or what it has is no usable network.
    pub(crate) fn key(&self, node: &Node, families: Families) -> Result<SubnetKey, String> {
        let subnets = node.pod_cidrs()?.map(|family, subnet| subnet.filter(|_| *families.get(family)));
        SubnetKey::new(subnets).ok_or_else(|| {
            if node.pod_cidrs().is_ok_and(|all| all.is_empty()) {
                return "it has no podCIDR".to_owned();
            }
            let wanted = if families.v4 { IpFamily::V4 } else { IpFamily::V6 };
            format!("it has no podCIDR of {wanted}, which is what the network has")
        })
    }

    fn attrs(&self, node: &Node, key: &SubnetKey) -> Result<LeaseAttrs, String> {
        let mut members = Vec::new();
        let text = |value: &str| to_raw_value(value).map_or_else(|_| "null".to_owned(), |raw| raw.get().to_owned());
        for (family, field) in [(IpFamily::V4, "PublicIP"), (IpFamily::V6, "PublicIPv6")] {
            let (address, data) = (self.get(node, PUBLIC_IP.get(family)), self.get(node, BACKEND_DATA.get(family)));
            if key.get(family).is_none() {
                continue;
            }
            members.extend(address.map(|address| format!("\"{field}\":{}", text(address))));
            // What is no JSON is a problem of this family alone.
            let data = data
                .map(|data| RawValue::from_string(data.to_owned()).map_or_else(|_| text(data), |_| data.to_owned()));
            members.extend(data.map(|data| format!("\"{}\":{data}", DATA.get(family))));
        }
        members.extend(self.get(node, BACKEND_TYPE).map(|kind| format!("\"BackendType\":{}", text(kind))));
        let value = format!("{{{}}}", members.join(","));
        LeaseAttrs::parse(value.as_bytes(), key.subnets().families()).map_err(|problems| self.texts(problems))
    }

    /// The problems of a lease, each under the name of its annotation.
    fn texts(&self, problems: Vec<Problem>) -> String {
        let name = |field: &str| match field.split('.').next().unwrap_or_default() {
            "PublicIP" => PUBLIC_IP.v4,
            "PublicIPv6" => PUBLIC_IP.v6,
            "BackendType" => BACKEND_TYPE,
            "BackendData" => BACKEND_DATA.v4,
            "BackendV6Data" => BACKEND_DATA.v6,
            _ => "",
        };
        let text = |problem: &Problem| match name(&problem.field) {
            "" => problem.to_string(),
            name => Problem { field: format!("annotation {}", self.name(name)), ..problem.clone() }.to_string(),
        };
        problems.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// The addresses that an operator's annotations name in place of `--public-ip` and `--public-ipv6`.
    pub(crate) fn node_public_ips(&self, node: &Node) -> PerFamily<Option<IpAddr>> {
        NODE_PUBLIC_IP.map(|family, name| self.address(node, name, family))
    }

    /// Annotations that should name an address of a family and do not.
    pub(crate) fn unusable(&self, node: &Node) -> Vec<String> {
        let names = IpFamily::ALL
            .into_iter()
            .flat_map(|family| [OVERWRITE, NODE_PUBLIC_IP].map(|names| (family, *names.get(family))));
        let wrong = names.filter_map(|(family, name)| {
            let value = self.get(node, name).filter(|value| !value.is_empty())?;
            self.address(node, name, family).is_none().then(|| {
                format!(
                    "annotation {}: {value:?} is no address of {family} that a host has; it counts for nothing",
                    self.name(name)
                )
            })
        });
        wrong.collect()
    }

    fn address(&self, node: &Node, name: &str, family: IpFamily) -> Option<IpAddr> {
        let address = self.get(node, name)?.parse().ok()?;
        (IpFamily::of(address) == family && no_host(address).is_none()).then_some(address)
    }

    /// Hardware addresses and other data that a Node has announced before, whatever else it says.
    pub(crate) fn announced(&self, node: &Node, key: &SubnetKey) -> Option<LeaseAttrs> {
        self.attrs(node, key).ok()
    }
}

impl Node {
    /// Its networks for Pods, one of each family at most, in whatever order they are written.
    ///
    /// # Errors
    /// When one is no network, or there are two of a family.
    pub(crate) fn pod_cidrs(&self) -> Result<PerFamily<Option<Prefix>>, String> {
        let listed = &self.spec.pod_cidrs;
        let single = [&self.spec.pod_cidr].into_iter().filter(|_| listed.is_empty());
        let mut subnets = PerFamily::<Option<Prefix>>::default();
        for text in single.chain(listed).filter(|text| !text.is_empty()) {
            let invalid = || format!("podCIDR {text:?} is no network such as 10.244.1.0/24");
            let subnet: Prefix = text.parse().map_err(|_| invalid())?;
            // A key of a lease, as etcd has it, has room for no longer ones.
            if subnet.len() == subnet.width() {
                return Err(format!("podCIDR {text} has one address only"));
            }
            if let Some(first) = subnets.get_mut(subnet.family()).replace(subnet) {
                return Err(format!("podCIDRs {first} and {text} are of one family; a Node has one of each at most"));
            }
        }
        Ok(subnets)
    }
}

#[cfg(test)]
mod tests;
