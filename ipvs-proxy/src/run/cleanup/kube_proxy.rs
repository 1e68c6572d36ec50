//! Taking away what a kube-proxy has left that does not run any more: chains of iptables-nft, tables of its nftables mode, virtual servers
//! and sets of its IPVS mode.
//!
//! Invariants. Only chains that kube-proxy makes go, by name: kubelet's (`KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-FIREWALL` of the
//! table filter) stay, and the three that a kubelet before 1.28 keeps as well ([`KUBELETS`]). Nothing that is open breaks: connections that
//! were chosen for go on by connection tracking, those that IPVS carries keep their virtual server ([`servers`]). What netlink does not reach
//! is named with the commands.

mod servers;
pub(crate) mod sets;

use std::collections::BTreeSet;
use std::fs;

use anyhow::bail;
use kernel::KernelError;
use kernel::ipset::Sets;
use kernel::nft::{Fate, Nft};
use netstate::nft::{Name, TableKey};
use netstate::{IpFamily, Prefix};

use self::sets::Places;
use crate::run::lock;

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

/// Its chain for the source ranges of load balancers in the table nat, up to Kubernetes 1.24; kubelet has one of that name in filter.
const FIREWALL: &str = "KUBE-FIREWALL";

/// Chains of the table nat that a kubelet before 1.28 makes at its start, and does not make again: a kube-proxy that comes back has packets
/// dropped by the first, and plugins have them masqueraded by the second (portmap's `externalSetMarkChain`).
const KUBELETS: [&str; 3] = [MARK_DROP, "KUBE-MARK-MASQ", "KUBE-POSTROUTING"];

/// The one that kube-proxy never puts a rule into: with a rule it is kubelet's, and the others are as well.
const MARK_DROP: &str = "KUBE-MARK-DROP";

/// What kube-proxy of the mode ipvs adds to `KUBE-POSTROUTING`, a rule that holds on to a set.
const HAIRPIN: &str = "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose";

/// The set of that rule.
const LOOP_BACK: &str = "KUBE-LOOP-BACK";

/// Its chains of one Service or endpoint begin so.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// What was found and taken away, one line each, and what the operator has to do.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// What is gone.
    pub(crate) removed: Vec<String>,
    /// What stays for now, and why.
    pub(crate) kept: Vec<String>,
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
    let mut sets = Sets::open()?;
    let present = sets::present(&mut sets)?;
    let servers = servers::remove(excluded, &Places::read(&mut sets, &present)?)?;
    if servers.removed > 0 || servers.addresses > 0 {
        found
            .removed
            .push(format!("{} rows of IPVS and {} addresses of kube-ipvs0", servers.removed, servers.addresses));
    }
    found.kept.extend(servers.busy.iter().map(|server| format!("virtual server {server}")));
    // While one of its virtual servers is left, the sets say that it is.
    for set in present.iter().filter(|_| servers.busy.is_empty()) {
        if sets.destroy(set)? {
            found.removed.push(format!("set {set}"));
        }
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
    let table = key.name.as_str();
    let has_kubelet = table == "nat" && rules.iter().any(|rule| rule.chain.as_str() == MARK_DROP);
    let named = rules.into_iter().flat_map(|rule| [Some(rule.chain), rule.target]).flatten();
    let mut chains: BTreeSet<Name> = named.filter(|name| is_its(table, name.as_str())).collect();
    // Empty ones, to which nothing leads.
    chains.extend(CHAINS.into_iter().chain([FIREWALL]).filter(|chain| is_its(table, chain)).map(Name::literal));
    chains.retain(|chain| !(has_kubelet && KUBELETS.contains(&chain.as_str())));
    let mut present = BTreeSet::new();
    for chain in chains {
        if nft.has_chain(key, &chain)? {
            present.insert(chain);
        }
    }
    nft.remove_foreign(
        key,
        &present,
        |rule| {
            if rule.comment.as_deref() == Some(HAIRPIN) { Fate::Go } else { Fate::Stay }
        },
    )?;
    Ok(present.len())
}

fn is_its(table: &str, chain: &str) -> bool {
    let is_firewall = chain == FIREWALL && table == "nat";
    is_firewall || CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Commands for what netlink does not reach: iptables-legacy, where one of its tables is in use.
fn commands() -> Vec<String> {
    let uses = |file: &str| {
        let tables = fs::read_to_string(file).unwrap_or_default();
        tables.lines().any(|table| TABLES.contains(&table))
    };
    let legacy = [("/proc/net/ip_tables_names", "iptables-legacy"), ("/proc/net/ip6_tables_names", "ip6tables-legacy")];
    let in_use = legacy.into_iter().filter(|(file, _)| uses(file));
    let chains = PREFIXES.iter().chain(&CHAINS).chain(&[LOOP_BACK]).copied();
    let chains: Vec<_> = chains.filter(|chain| !KUBELETS.contains(chain)).collect();
    let its = chains.join("|");
    in_use.map(|(_, command)| format!("{command}-save | grep -vE '{its}' | {command}-restore")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_chains_are_not_kube_proxys() {
        for chain in [
            "KUBE-SERVICES",
            "KUBE-SVC-NPX46M4PTMTKRN6Y",
            "KUBE-SEP-A",
            "KUBE-MARK-MASQ",
            "KUBE-IPVS-FILTER",
            "KUBE-FIREWALL",
        ] {
            assert!(is_its("nat", chain), "{chain}");
        }
        for chain in ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-ROUTER-INPUT", "DOCKER"] {
            assert!(!is_its("filter", chain), "{chain}");
        }
        for chain in ["POSTROUTING", "DOCKER", "KUBE-KUBELET-CANARY"] {
            assert!(!is_its("nat", chain), "{chain}");
        }
    }
}
