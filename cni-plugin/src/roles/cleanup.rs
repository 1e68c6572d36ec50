//! `netd-cni cleanup [--yes] LIST...`: takes away what this program has left on a node for the networks of these lists: the bridge, tables and
//! folders that Pods shared, and what Pods left that nobody deleted.
//!
//! Invariants: without `--yes` nothing is changed; what somebody else uses stays, and is named; a network whose Pods are alive is left whole; what is wrong with one list or network keeps
//! no other from being cleaned; one for which this program never attached a
//! Pod, as the folder of its records shows, is somebody else's, whatever its list names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kernel::Rtnl;
use kernel::link::LinkState;
use kernel::nft::Nft;
use netstate::nft::{Ruleset, TableKey};
use netstate::{IfName, LinkKind};
use serde_json::Value;

use super::install::plugins_of;
use super::name::PluginName;
use crate::plan::attach::vlan::vlan_port;
use crate::plan::gc::Subject;
use crate::plan::hostports::table;
use crate::plan::{masquerade, spoof};
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::reclaim::sweep;
use crate::state::places::Places;
use crate::state::records::Class;
use crate::state::reservations::locked::{is_blank, peek};
use crate::state::safe_file::LIST_MAX;

/// How the command is written.
pub const CLEANUP_USAGE: &str = "usage: netd-cni cleanup [--yes] LIST...";

/// What `cleanup` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleanup {
    /// Not only list it.
    pub yes: bool,
    /// Lists of plugins; one that is not there has no networks.
    pub lists: Vec<PathBuf>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// For the operator: what there was of the networks that were done, and whether it is removed.
    pub text: String,
    /// A list that cannot be read or is none, a network with a Pod that is alive, a refusal of the kernel or of a file.
    pub failure: Option<CniError>,
}

/// What there is of a network, a line for each.
#[derive(Default)]
struct Found {
    /// What goes.
    own: Vec<String>,
    /// What stays, and why.
    kept: Vec<String>,
}

/// The links of a network's bridge.
#[derive(Default)]
struct Links {
    own: Vec<IfName>,
    /// Why the bridge stays.
    kept: Option<String>,
}

/// One network of a list, as far as it is ours.
struct Network {
    conf: NetConf,
    places: Places,
    bridge: IfName,
}

impl Cleanup {
    /// Reads the words behind `cleanup`; `None` for an option that there is not, and without a list.
    #[must_use]
    pub fn parse(words: impl IntoIterator<Item = String>) -> Option<Self> {
        let (options, lists): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| word.starts_with('-'));
        let known = options.iter().all(|option| option == "--yes") && !lists.is_empty();
        known.then(|| Self { yes: !options.is_empty(), lists: lists.into_iter().map(PathBuf::from).collect() })
    }

    /// Lists what there is of every network, and removes it if that is asked for. What is wrong with one list or network is the
    /// failure, and keeps no other from being done and reported.
    #[must_use]
    pub fn run(&self) -> Cleaned {
        let (mut text, mut failures, mut is_any) = (String::new(), Vec::new(), false);
        for network in self.networks(&mut failures).into_values() {
            let cleaned = network.found().and_then(|found| {
                let removed = if self.yes { network.remove() } else { Ok(()) };
                removed.map(|()| found).map_err(|error| {
                    error
                        .details(format!("not everything of network {} is removed: call this again", network.conf.name))
                })
            });
            match cleaned {
                Ok(found) => {
                    is_any |= !found.own.is_empty();
                    found.own.iter().chain(&found.kept).for_each(|line| text.extend([line, "\n"]));
                }
                Err(error) => failures.push(error),
            }
        }
        let failure = failures.into_iter().reduce(|first, other| first.details(format!("and: {other}")));
        text.push_str(match (is_any, self.yes) {
            // Of a network that failed there may be something.
            (false, _) if failure.is_some() => "",
            (false, _) if !text.is_empty() => "nothing else of this program's is here\n",
            (false, _) => "nothing of this program's is here\n",
            (true, true) => "removed\n",
            (true, false) => "nothing is removed yet: --yes does\n",
        });
        Cleaned { text, failure }
    }

    /// By name; the first plugin of a network that is one of ours says where its things are.
    fn networks(&self, failures: &mut Vec<CniError>) -> BTreeMap<String, Network> {
        let mut networks = BTreeMap::new();
        for path in &self.lists {
            let text = match bounded::read(path, LIST_MAX) {
                // A shell passes a pattern on that no file fits; a name without one is a list that somebody means.
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_pattern(path) => continue,
                text => text.map_err(|error| CniError::io("read", path, &error)),
            };
            match text.and_then(|text| networks_of(&text).map_err(|error| error.details(path.display().to_string()))) {
                Ok(found) => found.into_iter().for_each(|network| {
                    networks.entry(network.conf.name.clone()).or_insert(network);
                }),
                Err(error) => failures.push(error),
            }
        }
        networks.retain(|_, network: &mut Network| network.places.records(Class::Attachment).dir().is_dir());
        networks
    }
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// The networks that a list gives to plugins of ours which make a bridge; a file without a list is one plugin.
fn networks_of(text: &[u8]) -> Result<Vec<Network>, CniError> {
    let none = |why: &str| CniError::new(Code::Decode, "no list of plugins").details(why);
    let list: Value = serde_json::from_slice(text).map_err(|error| none(&error.to_string()))?;
    let is_lone = list.get("plugins").is_none() && list.get("type").is_some();
    let lone = std::slice::from_ref(&list);
    let mut networks = Vec::new();
    for plugin in if is_lone { lone } else { plugins_of(&list).map_err(none)? } {
        let mut conf = plugin.as_object().cloned().unwrap_or_default();
        let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (place, usual) = match PluginName::of("", &kind) {
            Ok(PluginName::Native) => ("/bridge", "cbr0"),
            Ok(PluginName::Flannel) => ("/delegate/bridge", "cni0"),
            Ok(PluginName::Bridge) => ("/bridge", "cni0"),
            _ => continue,
        };
        let named = plugin.pointer(place).and_then(Value::as_str).filter(|name| !name.is_empty());
        let bridge = IfName::new(named.unwrap_or(usual))
            .map_err(|error| CniError::invalid_field("bridge", named.unwrap_or(usual), &error.to_string()))?;
        for key in ["name", "cniVersion"] {
            conf.extend(list.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        let conf = NetConf::parse(Value::Object(conf).to_string().as_bytes())?;
        let places = Places::of(&conf, None);
        networks.push(Network { conf, places, bridge });
    }
    Ok(networks)
}

impl Network {
    /// What there is; a Pod that is alive is an error.
    fn found(&self) -> Result<Found, CniError> {
        let mut host = Rtnl::open()?;
        let mut lines = Vec::new();
        for attachment in self.places.records(Class::Attachment).attachments() {
            if host.link(attachment.host_link())?.is_some() {
                let msg = format!("container {} of network {} is alive", attachment.container, self.conf.name);
                return Err(CniError::new(Code::TryAgainLater, msg)
                    .details("delete the Pods of this node first; nothing of this network is removed"));
            }
            lines.push(format!("what container {} left on network {}", attachment.container, self.conf.name));
        }
        let Links { own, kept } = self.links(&mut host)?;
        let mut kept = Vec::from_iter(kept);
        lines.extend(own.iter().map(|link| format!("link {link}")));
        let mut nft = Nft::open()?;
        for key in self.tables() {
            if nft.ruleset(&key)?.is_some_and(|found| may_go(&key, &found)) {
                lines.push(format!("nft table {key}"));
            }
        }
        for folder in self.folders().filter(|folder| folder.is_dir()) {
            if has_nobodys(&folder) {
                kept.push(format!("folder {} stays: a reservation in it names no container", folder.display()));
            } else {
                lines.push(format!("folder {}", folder.display()));
            }
        }
        Ok(Found { own: lines, kept })
    }

    fn remove(&self) -> Result<(), CniError> {
        sweep::sweep(&NetConf { valid_attachments: None, ..self.conf.clone() })?;
        let mut host = Rtnl::open()?;
        for link in self.links(&mut host)?.own {
            host.delete_link(&link)?;
        }
        let mut nft = Nft::open()?;
        for key in self.tables() {
            nft.remove_table(&key, |found| may_go(&key, found))?;
        }
        if let Some(dir) = self.places.data_dirs.first() {
            self.places.pools().forget(dir, &self.conf.name);
        }
        for folder in self.folders().filter(|folder| !has_nobodys(folder)) {
            remove_folder(&folder).map_err(|error| CniError::io("remove", &folder, &error))?;
        }
        // flannel's files name their network inside: one of another network keeps the folder.
        let _ = self.places.flannel_dir.as_ref().map(fs::remove_dir);
        Ok(())
    }

    /// The links of the bridge's VLANs and the bridge; neither where something of somebody else's is plugged into it or stands
    /// on it.
    fn links(&self, host: &mut Rtnl) -> Result<Links, CniError> {
        let all = host.links()?;
        let is_bridge = |link: &&LinkState| link.name == self.bridge && matches!(link.link.kind, LinkKind::Bridge(_));
        let Some(bridge) = all.iter().find(is_bridge) else { return Ok(Links::default()) };
        let pairs: Vec<(&LinkState, &LinkState)> =
            all.iter().filter_map(|link| Some((link, self.vlan_port_of(link, &all)?))).collect();
        let is_own = |link: &LinkState| pairs.iter().any(|(_, port)| port.index == link.index);
        let is_plugged = |link: &LinkState| link.master_index == Some(bridge.index) && !is_own(link);
        // The other end of a veth may be in another namespace, where indexes mean other links.
        let stands = |link: &LinkState| link.lower_index == Some(bridge.index) && link.link.kind != LinkKind::Veth;
        if let Some(other) = all.iter().find(|link| is_plugged(link) || stands(link)) {
            let how = if is_plugged(other) { "is plugged into it" } else { "stands on it" };
            let kept = Some(format!("link {} stays: {} {how}", bridge.name, other.name));
            return Ok(Links { own: Vec::new(), kept });
        }
        let own = pairs.iter().map(|(gateway, _)| gateway.name.clone()).chain([bridge.name.clone()]).collect();
        Ok(Links { own, kept: None })
    }

    /// The end on the bridge of the pair that ADD made to hold the gateways of a VLAN, if `link` is its other one.
    fn vlan_port_of<'a>(&self, link: &LinkState, all: &'a [LinkState]) -> Option<&'a LinkState> {
        let (bridge, id) = link.name.as_str().rsplit_once('.').filter(|_| link.link.kind == LinkKind::Veth)?;
        let end = vlan_port(&self.bridge, id.parse().ok().filter(|_| bridge == self.bridge.as_str())?);
        all.iter().find(|port| port.name == end.name && link.lower_index == Some(port.index))
    }

    /// The tables that Pods shared: those of the network, and that of the host ports of all networks.
    fn tables(&self) -> impl Iterator<Item = TableKey> {
        let masquerade = masquerade::ruleset(&self.conf.name, &[], &[]).map(|ruleset| ruleset.key);
        [Some(table::key()), masquerade, spoof::table_key(&self.conf.name)].into_iter().flatten()
    }

    /// Records and reservations, the innermost first.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let records = [Class::HostPorts, Class::Bandwidth, Class::Attachment].map(|class| self.places.records(class));
        let leases: Vec<_> = self.places.leases().collect();
        let grants: Vec<PathBuf> = leases.iter().map(|(_, grants)| grants.dir().to_owned()).collect();
        let reservations: Vec<PathBuf> = leases.iter().map(|(store, _)| store.dir().to_owned()).collect();
        records.map(|records| records.dir().to_owned()).into_iter().chain(grants).chain(reservations)
    }
}

/// True for a folder of reservations in which somebody blocks an address: what names no container is not this program's.
fn has_nobodys(folder: &Path) -> bool {
    peek(folder).any(|text| !is_blank(&text) && Subject::of_reservation(&text).is_none())
}

/// Host ports of another network's Pods keep the table of all.
fn may_go(key: &TableKey, found: &Ruleset) -> bool {
    *key != table::key() || found.elements.is_empty()
}

/// Removes a folder of state with the files that outlive its Pods, and the folders above that are empty then; an absent one is fine.
fn remove_folder(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == "lock" || name.starts_with("last_reserved_ip.") {
            fs::remove_file(path)?;
        }
    }
    fs::remove_dir(folder)?;
    for above in folder.ancestors().skip(1).take(2) {
        if fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lists_and_one_option() {
        let parse = |words: &str| Cleanup::parse(words.split_whitespace().map(str::to_owned));
        let asked = |yes, lists: &[&str]| Some(Cleanup { yes, lists: lists.iter().map(PathBuf::from).collect() });
        assert_eq!(parse("a b"), asked(false, &["a", "b"]));
        assert_eq!(parse("a --yes b"), asked(true, &["a", "b"]));
        for words in ["", "--yes", "--force a", "--yes --force a", "-y a", "--yes=no a"] {
            assert_eq!(parse(words), None, "{words:?}");
        }
    }
}
