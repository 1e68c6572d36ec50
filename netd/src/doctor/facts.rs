//! What the checks judge: read once from the daemon, the kernel and the other nodes.
//!
//! Invariant: counters are read before and after the probes, so that what grew did so because of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use kernel::Rtnl;
use kernel::nft::{Denial, Nft};
use kernel::query::{Interface, Query};
use netstate::{IfName, Prefix, SysctlKey};
use serde::Deserialize as _;

use super::entrance::{self, Closed};
use super::holders::{self, Held};
use super::kept;
use super::outer;
use super::probing::{self, Paths, Peer};
use crate::command::args::Flags;
use crate::command::config::run_dir;
use crate::run::forward::{self, Advice};
use crate::run::needs;
use crate::run::status::Status;
use crate::tools::{LIMIT, block_on};

/// A node as it stands.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// What the daemon says; `None` when it does not run.
    pub daemon: Option<Status>,
    /// Why it says nothing.
    pub silence: Option<String>,
    /// What the kernel has not, by name, each with what to do.
    pub lacking: Vec<(String, String)>,
    /// The same of what only some Pods need.
    pub lacking_for_pods: Vec<(String, String)>,
    /// Interfaces with their addresses.
    pub interfaces: Vec<Interface>,
    /// Parameters below /proc/sys/net by their names there; what is not there is not in here.
    pub parameters: BTreeMap<String, String>,
    /// Packets that rules and the source check dropped while probes were under way.
    pub drops: Vec<(String, u64)>,
    /// What iptables-legacy denies.
    pub legacy: Vec<Advice>,
    /// Where rules deny what other nodes send.
    pub closed: Vec<Closed>,
    /// Tunnels without a route to a node.
    pub astray: Vec<crate::trace::astray::Astray>,
    /// Packets that were dropped for their source address meanwhile.
    pub reverse_path_drops: u64,
    /// Others on the link that have this node's addresses, or why nobody could be asked.
    pub holders: Held,
    /// The other nodes, and what came of the probes.
    pub paths: Vec<(Peer, Paths)>,
}

impl Facts {
    /// A parameter as a number.
    #[must_use]
    pub(super) fn parameter(&self, name: &str) -> Option<u32> {
        self.parameters.get(name)?.trim().parse().ok()
    }

    /// The Pod networks.
    pub(super) fn networks(&self) -> Vec<Prefix> {
        let text = self.daemon.as_ref().map(|daemon| daemon.node.network.as_str()).unwrap_or_default();
        text.split(',').filter_map(|network| network.parse().ok()).collect()
    }

    /// This node's subnets.
    pub(super) fn subnets(&self) -> Vec<Prefix> {
        let text = self.daemon.as_ref().and_then(|daemon| daemon.node.subnet.as_deref()).unwrap_or_default();
        text.split(',').filter_map(|subnet| subnet.parse().ok()).collect()
    }

    /// Interfaces that carry the Pods' packets: towards the nodes, tunnels, and those with an address of the own subnet.
    pub(super) fn carriers(&self) -> impl Iterator<Item = &IfName> {
        let external = self.daemon.as_ref().map(|daemon| daemon.node.interface.as_str()).unwrap_or_default();
        let subnets = self.subnets();
        let carries = move |interface: &&Interface| {
            let pods = |addr: IpAddr| subnets.iter().any(|subnet| subnet.contains(addr));
            interface.name.as_str() == external || interface.addresses.iter().any(|own| pods(own.addr))
        };
        self.interfaces.iter().filter(carries).map(|interface| &interface.name)
    }
}

/// Asks the daemon.
///
/// # Errors
/// When it does not answer.
pub(crate) fn ask(flags: &Flags) -> Result<Status> {
    let text = ::daemon::http::ask(&run_dir(flags), "/status?format=json", LIMIT)?;
    let value: serde_json::Value = serde_json::from_str(&text).context("read the daemon's status")?;
    Status::deserialize(&value).context("read the daemon's status")
}

/// The VRF in which the daemon reaches the other nodes.
pub(crate) fn vrf(rtnl: &mut Rtnl, status: &Status) -> Option<IfName> {
    let interface = status.node.interface.parse().ok()?;
    // One that cannot be read is one without a VRF: what is sent then says more.
    Some(rtnl.vrf_of(&interface).ok()??.name)
}

/// Gathers them.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn gather(flags: &Flags, probe_port: Option<u16>) -> Result<Facts> {
    let (daemon, silence) = match ask(flags) {
        Ok(daemon) => (Some(daemon), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let mut rtnl = Rtnl::open()?;
    let peers = daemon.as_ref().map(|daemon| {
        let vrf = vrf(&mut rtnl, daemon);
        probing::peers(daemon, probe_port.unwrap_or_default(), vrf.as_ref())
    });
    let peers = peers.unwrap_or_default();
    block_on(async {
        let interfaces = Query::open()?.interfaces().await?;
        let (lacking, lacking_for_pods) = (lacking()?, lacking_for_pods()?);
        let before = counters()?;
        let size = daemon.as_ref().map_or(0, |daemon| daemon.node.mtu);
        let own = holders::own(daemon.as_ref(), &interfaces);
        let (paths, holders) = tokio::join!(probing::probe(peers, size), holders::ask(own));
        let after = counters()?;
        let mut facts = Facts { daemon, silence, lacking, interfaces, holders, paths, ..Facts::default() };
        facts.lacking_for_pods = lacking_for_pods;
        kept::write(&run_dir(flags), &facts.paths);
        facts.reverse_path_drops = after.reverse_path.saturating_sub(before.reverse_path);
        for (rule, packets) in after.rules {
            let grown = packets.saturating_sub(before.rules.get(&rule).copied().unwrap_or_default());
            if grown > 0 {
                facts.drops.push((rule, grown));
            }
        }
        facts.legacy = forward::legacy(&facts.networks().into_iter().collect());
        let nodes = facts.paths.iter().map(|(peer, _)| peer.direct.ip());
        let of_tunnels = facts.paths.iter().filter(|(peer, _)| peer.tunnel.is_some());
        facts.astray = outer::astray(of_tunnels.map(|(peer, _)| peer.direct.ip()))?;
        facts.closed = entrance::closed(facts.daemon.as_ref(), &facts.interfaces, nodes, probe_port)?;
        let names: Vec<IfName> = facts.interfaces.iter().map(|interface| interface.name.clone()).collect();
        facts.parameters = parameters(&names);
        Ok(facts)
    })
}

struct Counters {
    rules: BTreeMap<String, u64>,
    reverse_path: u64,
}

fn counters() -> Result<Counters> {
    let mut rules: BTreeMap<String, u64> = BTreeMap::new();
    for Denial { rule, packets } in Nft::open()?.denials()? {
        *rules.entry(rule).or_default() += packets;
    }
    let text = std::fs::read_to_string("/proc/net/netstat").context("read /proc/net/netstat")?;
    Ok(Counters { rules, reverse_path: counter(&text, "TcpExt:", "IPReversePathFilter") })
}

/// A number of /proc/net/netstat: names and values stand on lines of their own.
pub(crate) fn counter(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(group)).map(str::split_whitespace);
    let (Some(mut names), Some(mut values)) = (lines.next(), lines.next()) else { return 0 };
    names.position(|found| found == name).and_then(|at| values.nth(at)?.parse().ok()).unwrap_or_default()
}

fn lacking() -> Result<Vec<(String, String)>> {
    let missing = kernel::feature::missing(&needs::ALL)?;
    Ok(missing.into_iter().map(|feature| (feature.to_string(), feature.advice())).collect())
}

fn lacking_for_pods() -> Result<Vec<(String, String)>> {
    let mut lacking = Vec::new();
    for (feature, refused) in needs::OF_SOME_PODS {
        if !feature.is_there()? {
            lacking.push((format!("{feature}: the plugin refuses {refused}"), feature.advice()));
        }
    }
    Ok(lacking)
}

fn parameters(interfaces: &[IfName]) -> BTreeMap<String, String> {
    let mut names: Vec<String> = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/all/rp_filter",
        "bridge/bridge-nf-call-iptables",
        "bridge/bridge-nf-call-ip6tables",
    ]
    .map(str::to_owned)
    .to_vec();
    for interface in interfaces {
        names.push(format!("ipv4/conf/{interface}/rp_filter"));
        names.push(format!("ipv4/conf/{interface}/forwarding"));
        names.push(format!("ipv6/conf/{interface}/forwarding"));
    }
    let read = |name: String| {
        let key = format!("net/{name}").parse::<SysctlKey>().ok()?;
        Some((name, kernel::sysctl::read(&key).ok()?))
    };
    names.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter Other\nTcpExt: 0 17 3\nIpExt: InNoRoutes\nIpExt: 9\n";
        assert_eq!(counter(text, "TcpExt:", "IPReversePathFilter"), 17);
        assert_eq!(counter(text, "IpExt:", "InNoRoutes"), 9);
        assert_eq!(counter(text, "IpExt:", "Gone"), 0);
        assert_eq!(counter("", "IpExt:", "Gone"), 0);
    }
}
