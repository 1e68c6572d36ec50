//! Which Pods this node has: by name and container from what the runtime's libcni and our plugin keep, by address from the
//! network namespaces themselves.
//!
//! Invariant: a file that cannot be read is passed over; what is found there only leads to an address, and the address is
//! searched for in the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kernel::{Netns, Rtnl};
use netstate::IfName;
use serde_json::Value;

/// libcni's cache of results (libcni/api.go), and the records of netd-cni.
const RESULTS: &str = "/var/lib/cni/results";
const RECORDS: &str = "/var/lib/cni/netd";

/// Shortest part of a container id that is taken for one.
const SHORTEST_ID: usize = 6;

/// A Pod by what is kept of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attachment {
    /// `namespace/name`, where the runtime said so.
    pub name: Option<String>,
    /// The container's id.
    pub container: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A Pod's network namespace.
#[derive(Debug)]
pub(crate) struct Place {
    /// The namespace.
    pub netns: Netns,
    /// The interface with the address.
    pub interface: IfName,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// It is up.
    pub up: bool,
    /// Index of its other end outside.
    pub peer: Option<u32>,
}

/// What is kept of the Pods of this node.
#[must_use]
pub(crate) fn attachments() -> Vec<Attachment> {
    let mut found: BTreeSet<Attachment> =
        files(Path::new(RESULTS)).iter().filter_map(|file| cached(&read(file)?)).collect();
    let known: BTreeSet<String> = found.iter().map(|attachment| attachment.container.clone()).collect();
    for folder in files(Path::new(RECORDS)) {
        let records = files(&folder);
        let read = records.iter().filter_map(|file| recorded(file.file_name()?.to_str()?, &read(file)?));
        found.extend(read.filter(|attachment| !known.contains(&attachment.container)));
    }
    found.into_iter().collect()
}

/// When the folders of what is kept of them had changed last: whoever adds or takes away a Pod changes one.
#[must_use]
pub(crate) fn changed() -> Vec<(PathBuf, SystemTime)> {
    let folders = [PathBuf::from(RESULTS), PathBuf::from(RECORDS)].into_iter().chain(files(Path::new(RECORDS)));
    folders.filter_map(|folder| Some((folder.clone(), fs::metadata(folder).ok()?.modified().ok()?))).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// A file that is a plain one, and of a size that either program writes.
fn read(file: &Path) -> Option<String> {
    let plain = fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
    if plain { bounded::read_text(file, bounded::SETTINGS).ok() } else { None }
}

/// An entry of libcni's cache.
fn cached(text: &str) -> Option<Attachment> {
    let value: Value = serde_json::from_str(text).ok()?;
    let argument = |wanted: &str| {
        let pairs = value.get("cniArgs")?.as_array()?;
        let pair = pairs.iter().find(|pair| pair.get(0).and_then(Value::as_str) == Some(wanted))?;
        pair.get(1)?.as_str().map(str::to_owned)
    };
    let name = argument("K8S_POD_NAME").map(|name| match argument("K8S_POD_NAMESPACE") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    });
    let result = value.get("result")?;
    let listed = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let older = ["ip4", "ip6"].map(|family| result.get(family)?.get("ip"));
    let texts = listed.iter().map(|ip| ip.get("address")).chain(older).flatten();
    let addresses = texts.filter_map(|text| text.as_str()?.split('/').next()?.parse().ok()).collect();
    Some(Attachment { name, container: value.get("containerId")?.as_str()?.to_owned(), addresses })
}

/// A record of netd-cni, `CONTAINER@INTERFACE`.
fn recorded(file: &str, text: &str) -> Option<Attachment> {
    let (container, _) = file.split_once('@')?;
    let value: Value = serde_json::from_str(text).ok()?;
    let addresses = value.get("addresses")?.as_array()?.iter().filter_map(|text| text.as_str()?.parse().ok()).collect();
    Some(Attachment { name: None, container: container.to_owned(), addresses })
}

/// Those of `attachments` that `text` can mean: a Pod's name, with or without its namespace, or the beginning of a
/// container's id.
#[must_use]
pub(crate) fn named<'a>(attachments: &'a [Attachment], text: &str) -> Vec<&'a Attachment> {
    let is = |attachment: &&Attachment| {
        let name = attachment.name.as_deref();
        let bare = name.and_then(|name| name.rsplit('/').next());
        name == Some(text)
            || bare == Some(text)
            || (text.len() >= SHORTEST_ID && attachment.container.starts_with(text))
    };
    attachments.iter().filter(is).collect()
}

/// The network namespace on this node that has `address`, if there is one besides the host's own.
#[must_use]
pub(crate) fn place_of(address: IpAddr) -> Option<Place> {
    let mut seen = BTreeSet::new();
    namespaces().into_iter().find_map(|path| {
        let meta = fs::metadata(&path).ok()?;
        let netns = Netns::open(&path).ok().filter(|_| seen.insert((meta.dev(), meta.ino())))?;
        if netns.is_current().unwrap_or(true) { None } else { place_in(netns, address) }
    })
}

fn place_in(netns: Netns, address: IpAddr) -> Option<Place> {
    let mut rtnl = Rtnl::open_in(&netns).ok()?;
    let (index, ..) = rtnl.addresses().ok()?.into_iter().find(|(_, found, _)| *found == address)?;
    let state = rtnl.link_by_index(index).ok()??;
    let peer = state.lower_index.filter(|_| state.peer_netns_id.is_some());
    let (mtu, up) = (state.link.mtu.unwrap_or_default(), state.link.up);
    Some(Place { netns, interface: state.name, mtu, up, peer })
}

/// Namespaces with a name, then those of processes.
fn namespaces() -> Vec<PathBuf> {
    let mut paths = files(Path::new("/run/netns"));
    paths.extend(files(Path::new("/var/run/netns")));
    let is_process = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    };
    paths.extend(files(Path::new("/proc")).into_iter().filter(is_process).map(|process| process.join("ns/net")));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHED: &str = r#"{"kind":"cniCacheV1","containerId":"0123456789ab","ifName":"eth0","networkName":"cbr0",
        "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"]],
        "result":{"cniVersion":"1.0.0","ips":[{"address":"172.7.21.2/24"},{"address":"fc00::2/64"}]}}"#;

    #[test]
    fn pods_are_found_by_name_by_namespace_and_by_container() {
        let web = cached(CACHED).unwrap();
        assert_eq!(web.name.as_deref(), Some("shop/web"));
        assert_eq!(web.addresses, ["172.7.21.2".parse::<IpAddr>().unwrap(), "fc00::2".parse().unwrap()]);
        let other = recorded("ffeeddccbbaa@eth0", r#"{"boot":"x","addresses":["172.7.21.3"],"ports":false}"#).unwrap();
        let all = [web.clone(), other.clone()];
        for text in ["shop/web", "web", "0123456789ab", "012345"] {
            assert_eq!(named(&all, text), [&web], "{text}");
        }
        assert_eq!(named(&all, "ffeeddccbbaa"), [&other]);
        for text in ["", "01234", "we", "blue/web", "172.7.21.2"] {
            assert!(named(&all, text).is_empty(), "{text}");
        }
    }

    #[test]
    fn results_of_every_version_and_junk_are_read() {
        let old = r#"{"containerId":"c1","result":{"cniVersion":"0.1.0","ip4":{"ip":"172.7.21.9/24"}}}"#;
        assert_eq!(cached(old).unwrap().addresses, ["172.7.21.9".parse::<IpAddr>().unwrap()]);
        for junk in ["", "{}", "[1]", r#"{"containerId":7,"result":{}}"#, r#"{"containerId":"c1"}"#] {
            assert_eq!(cached(junk), None, "{junk}");
        }
        assert_eq!(recorded("no-at", "{}"), None);
        assert_eq!(recorded("c1@eth0", "junk"), None);
    }
}
