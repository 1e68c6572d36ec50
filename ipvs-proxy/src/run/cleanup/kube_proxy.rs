//! Taking away what a kube-proxy has left that does not run any more: chains of iptables-nft, tables of its nftables mode, and virtual
//! servers of its IPVS mode.
//!
//! Invariants. Only chains that kube-proxy makes go, by name: kubelet's (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`)
//! stay. The link `kube-ipvs0` and what stands at its addresses go only while no record of ours is whole: then they are the
//! predecessor's. Connections that were chosen for go on by connection tracking, those that IPVS carries end; what netlink does not reach
//! is named with the commands.

use std::collections::BTreeSet;
use std::fs;

use anyhow::bail;
use kernel::address::Addresses;
use kernel::ipvs::{Ipvs, IpvsTable};
use kernel::nft::{Fate, Nft, Tables};
use kernel::{Cause, KernelError, Rtnl};
use netstate::nft::{Name, TableKey};
use netstate::{Address, AddressKey, IpFamily, Prefix};
use reconcile::{Step, Target};

use super::remove_ours;
use crate::dataplane::{self, record};
use crate::run::{link, lock};

/// The tables of iptables that kube-proxy has chains in.
const TABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// Its chains with names of their own (pkg/proxy/iptables/proxier.go, pkg/proxy/ipvs/proxier.go).
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-MARK-MASQ",
    "KUBE-MARK-DROP",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Its chains of one Service or endpoint begin so.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// What was found and taken away, one line each, and what the operator has to do.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// What is gone.
    pub(crate) removed: Vec<String>,
    /// Commands for the rest.
    pub(crate) commands: Vec<String>,
}

/// Removes everything that a kube-proxy has left, but for virtual servers and addresses in `excluded`.
///
/// # Errors
/// When a kube-proxy runs here, or the kernel refuses; what is removed by then stays removed.
pub(crate) fn remove(excluded: &[Prefix]) -> anyhow::Result<Leftovers> {
    if let Some(rival) = lock::rival() {
        bail!("{rival}, then clean up after it");
    }
    let mut nft = Nft::open()?;
    let mut found = Leftovers::default();
    for family in IpFamily::ALL {
        let own = TableKey { family: family.into(), name: Name::literal("kube-proxy") };
        if nft.remove_foreign_table(&own)? {
            found.removed.push(format!("nft table {own}"));
        }
        for table in TABLES {
            let key = TableKey { family: family.into(), name: Name::literal(table) };
            let count = remove_chains(&mut nft, &key)?;
            if count > 0 {
                found.removed.push(format!("{count} chains of nft table {key}, with the rules that lead there"));
            }
        }
    }
    let servers = remove_servers(excluded)?;
    if let Some(servers) = servers.filter(|servers| *servers > 0) {
        found.removed.push(format!("{servers} rows of IPVS, and the link kube-ipvs0"));
    }
    found.commands = commands();
    Ok(found)
}

/// Removes its chains from a table of iptables-nft; returns how many.
fn remove_chains(nft: &mut Nft, key: &TableKey) -> Result<usize, KernelError> {
    if !nft.has_table(key)? {
        return Ok(0);
    }
    let rules = nft.foreign_rules(key)?;
    let named = rules.into_iter().flat_map(|rule| [Some(rule.chain), rule.target]).flatten();
    let mut chains: BTreeSet<Name> = named.filter(|name| is_its(name.as_str())).collect();
    // Empty ones, to which nothing leads.
    chains.extend(CHAINS.into_iter().map(Name::literal));
    let mut present = BTreeSet::new();
    for chain in chains {
        if nft.has_chain(key, &chain)? {
            present.insert(chain);
        }
    }
    nft.remove_foreign(key, &present, |_| Fate::Stay)?;
    Ok(present.len())
}

fn is_its(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Removes the virtual servers at addresses of its link, and the link; `None` while a record of ours says whose they are.
fn remove_servers(excluded: &[Prefix]) -> anyhow::Result<Option<usize>> {
    let rows = Tables::new(Nft::open()?, dataplane::tables()).observe()?;
    let has_record = |family| record::is_whole(&rows, family);
    if IpFamily::ALL.into_iter().any(has_record) || !record::servers(&rows).is_empty() {
        return Ok(None);
    }
    let link = link()?;
    let mut addresses = Addresses::new(Rtnl::open()?, [link.clone()]);
    let is_excluded = |key: &AddressKey| excluded.iter().any(|network| network.contains(key.addr));
    let (stay, go): (Vec<_>, Vec<_>) = addresses.observe()?.into_keys().partition(is_excluded);
    let at: BTreeSet<_> = go.iter().map(|key| key.addr).collect();
    let removed = match Ipvs::open() {
        Ok(ipvs) => {
            let mut table = IpvsTable::new(ipvs, []);
            table.adopt(BTreeSet::new(), at.clone());
            remove_ours(&mut table)?
        }
        Err(KernelError { cause: Cause::Missing(_), .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    if stay.is_empty() && !at.is_empty() {
        Rtnl::open()?.delete_link(&link)?;
    } else {
        let steps: Vec<_> = go.into_iter().map(|key| Step::Remove(key, Address)).collect();
        addresses.apply(&steps).into_iter().collect::<Result<(), _>>()?;
    }
    Ok(Some(removed))
}

/// Commands for what netlink does not reach: iptables-legacy, where one of its tables is in use, and sets of ipset.
fn commands() -> Vec<String> {
    let uses = |file: &str| {
        let tables = fs::read_to_string(file).unwrap_or_default();
        tables.lines().any(|table| TABLES.contains(&table))
    };
    let legacy = [("/proc/net/ip_tables_names", "iptables-legacy"), ("/proc/net/ip6_tables_names", "ip6tables-legacy")];
    let in_use = legacy.into_iter().filter(|(file, _)| uses(file));
    let chains: Vec<_> = PREFIXES.iter().chain(&CHAINS).copied().collect();
    let its = chains.join("|");
    in_use.map(|(_, command)| format!("{command}-save | grep -vE '{its}' | {command}-restore")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_chains_are_not_kube_proxys() {
        for chain in ["KUBE-SERVICES", "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-A", "KUBE-MARK-MASQ", "KUBE-IPVS-FILTER"]
        {
            assert!(is_its(chain), "{chain}");
        }
        for chain in ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-ROUTER-INPUT", "DOCKER"] {
            assert!(!is_its(chain), "{chain}");
        }
    }
}
