//! What the checks judge: what the tools know of objects and kernel, and this host's parameters, chains, sockets and routes.
//!
//! Invariant: nothing is written, and no module is loaded but a scheduler's and those that the data path needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use kernel::legacy;
use kernel::listener::{self, Listener};
use kernel::nft::Nft;
use kernel::nft::forward::Denying;
use kernel::query::Query;
use netstate::nft::{Family, Name, TableKey};
use netstate::{IpFamily, SysctlKey};

use crate::command::args::Invocation;
use crate::dataplane::Mode;
use crate::facts::{self, Facts as Known};
use crate::run::{forward, lock, needs};

/// Endpoints whose route is asked for at most.
const ENDPOINTS: usize = 512;

/// A node as it stands.
pub(super) struct Facts {
    /// Objects, plan and rows.
    pub(super) known: Known,
    /// Parameters below /proc/sys/net by their names there; what is not there is not in here.
    pub(super) parameters: BTreeMap<String, String>,
    /// The kernel has IPVS.
    pub(super) has_ipvs: bool,
    /// What the data path needs and the kernel has not, by name, each with what to do.
    pub(super) lacking: Vec<(String, String)>,
    /// The kernel has the scheduler, where it can be asked.
    pub(super) has_scheduler: Option<bool>,
    /// What to say of a kube-proxy that runs here.
    pub(super) rival: Option<String>,
    /// Tables and chains that a kube-proxy has left.
    pub(super) leftovers: Vec<String>,
    /// Chains of others that drop what is forwarded.
    pub(super) denying: Vec<Denying>,
    /// Families whose FORWARD of iptables-legacy denies the Pods.
    pub(super) legacy: Vec<IpFamily>,
    /// Packets that were dropped for their source address since this host is up.
    pub(super) reverse_path_drops: u64,
    /// Virtual addresses and endpoints that this node has no route to, with the reason.
    pub(super) unreachable: BTreeMap<IpAddr, String>,
    /// Sockets of this host that wait for clients.
    pub(super) listeners: BTreeSet<Listener>,
}

impl Facts {
    /// A parameter as a number.
    pub(super) fn parameter(&self, name: &str) -> Option<u64> {
        self.parameters.get(name)?.trim().parse().ok()
    }

    /// The data path.
    pub(super) fn mode(&self) -> Mode {
        self.known.planned.plane.mode()
    }

    /// Whether Services have addresses of this family.
    pub(super) fn has(&self, family: IpFamily) -> bool {
        self.known.planned.plane.families().any(|served| served == family)
    }
}

/// Gathers them.
///
/// # Errors
/// When the settings are wrong, or the kernel cannot be read.
pub(super) fn gather(invocation: &Invocation) -> Result<Facts> {
    let known = facts::gather(invocation)?;
    let has_ipvs = Path::new(facts::IPVS).exists();
    let has_scheduler = match known.planned.plane.mode() {
        Mode::Ipvs if has_ipvs => kernel::ipvs::Ipvs::open()?.has_scheduler(&known.scheduler).ok(),
        _ => None,
    };
    let missing = kernel::feature::missing(&needs::of(known.planned.plane.mode()))?;
    let mut stage = forward::stage(Nft::open()?);
    let netstat = fs::read_to_string("/proc/net/netstat").context("read /proc/net/netstat")?;
    Ok(Facts {
        parameters: parameters(&known),
        has_ipvs,
        lacking: missing.into_iter().map(|feature| (feature.to_string(), feature.advice())).collect(),
        has_scheduler,
        rival: lock::rival(),
        leftovers: leftovers()?,
        denying: stage.survey()?,
        legacy: denying_legacy(&known),
        reverse_path_drops: counter(&netstat, "TcpExt:", "IPReversePathFilter"),
        unreachable: unreachable(&known)?,
        listeners: listener::listeners(),
        known,
    })
}

/// Those that the checks ask for.
fn parameters(known: &Known) -> BTreeMap<String, String> {
    let mut names: Vec<String> = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/all/rp_filter",
        "ipv4/ip_local_port_range",
        "ipv4/ip_local_reserved_ports",
        "ipv4/vs/conntrack",
        "netfilter/nf_conntrack_count",
        "netfilter/nf_conntrack_max",
        "bridge/bridge-nf-call-iptables",
        "bridge/bridge-nf-call-ip6tables",
    ]
    .map(str::to_owned)
    .into();
    names.extend(known.kernel.interfaces.iter().map(|link| format!("ipv4/conf/{}/rp_filter", link.name)));
    let read = |name: String| {
        let key = format!("net/{name}").parse::<SysctlKey>().ok()?;
        Some((name, kernel::sysctl::read(&key).ok()?))
    };
    names.into_iter().filter_map(read).collect()
}

/// What kube-proxy of each mode leaves: a table of its own, or chains in those of iptables-nft.
fn leftovers() -> Result<Vec<String>> {
    let mut nft = Nft::open()?;
    let mut found = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        let own = TableKey { family, name: Name::literal("kube-proxy") };
        if nft.has_table(&own)? {
            found.push(format!("nft table {own}"));
        }
        for (table, chain) in [("nat", "KUBE-SERVICES"), ("filter", "KUBE-FORWARD")] {
            let key = TableKey { family, name: Name::literal(table) };
            let chain = Name::literal(chain);
            if nft.has_table(&key)? && nft.has_chain(&key, &chain)? {
                found.push(format!("chain {key} {chain}"));
            }
        }
    }
    Ok(found)
}

fn denying_legacy(known: &Known) -> Vec<IpFamily> {
    let denies = |family: &IpFamily| {
        let pods = known.pods.iter().filter(|pods| pods.family() == *family);
        let passes = |chain: legacy::Forwarding| pods.clone().all(|pods| chain.passes(*pods));
        // A chain that cannot be read is that of a program that has no rights: the rows could not be read either.
        let denies = |table| {
            legacy::has_table(*family, table) && legacy::forwarding(*family, table).is_ok_and(|chain| !passes(chain))
        };
        legacy::FORWARDING.into_iter().any(denies)
    };
    IpFamily::ALL.into_iter().filter(denies).collect()
}

/// A number of /proc/net/netstat: names and values stand on lines of their own.
fn counter(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(group)).map(str::split_whitespace);
    let (Some(mut names), Some(mut values)) = (lines.next(), lines.next()) else { return 0 };
    names.position(|found| found == name).and_then(|at| values.nth(at)?.parse().ok()).unwrap_or_default()
}

/// Endpoints, and of nftables virtual addresses, that no route leads to.
fn unreachable(known: &Known) -> Result<BTreeMap<IpAddr, String>> {
    let endpoints = known.view.all_slices().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.addr));
    let vips = || known.view.services().flat_map(|service| service.cluster_ips.iter().copied());
    // One that is local in the mode ipvs has a route; of those of one network the first stands for all.
    let mut asked: BTreeSet<IpAddr> = endpoints.take(ENDPOINTS).collect();
    for family in IpFamily::ALL {
        asked.extend(vips().find(|vip| IpFamily::of(*vip) == family));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    runtime.block_on(async {
        let query = Query::open()?;
        let mut found = BTreeMap::new();
        for addr in asked {
            if let Err(error) = query.way_to(addr).await {
                found.insert(addr, kernel::Chain(&error).to_string());
            }
        }
        Ok(found)
    })
}
