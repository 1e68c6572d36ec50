//! The Pod network in foreign chains that drop what is forwarded, as Docker leaves `ip filter FORWARD`.
//!
//! Our own `forward` chain cannot overrule a drop in another table. Every such chain is reported, and so are the tables of
//! iptables-legacy, which nftables does not show.

use std::collections::BTreeSet;

use kernel::nft::forward::{Accept, Denying};
use netstate::Prefix;

/// Where the kernel names the tables of iptables-legacy in this network namespace, and the commands.
const LEGACY: [(&str, &str, bool); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy", true),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy", false),
];

/// What an operator should know of iptables-legacy where `networks` shall pass.
pub(super) fn legacy(networks: &BTreeSet<Prefix>) -> Vec<String> {
    let of_family = |(file, command, v4): (&str, &str, bool)| {
        let network = networks.iter().find(|network| network.is_ipv4() == v4)?;
        let tables = std::fs::read_to_string(file).ok()?;
        tables.lines().any(|table| table == "filter").then(|| {
            format!(
                "{command} has a table filter here, which netd can neither read nor change: if it denies what is \
                 forwarded, {command} -A FORWARD -s {network} -j ACCEPT, the same with -d, or its rules in iptables-nft"
            )
        })
    };
    LEGACY.into_iter().filter_map(of_family).collect()
}

/// Packets from and to `networks`.
pub(super) fn accepts(networks: &BTreeSet<Prefix>) -> BTreeSet<Accept> {
    networks.iter().flat_map(|network| [Accept::From(*network), Accept::To(*network)]).collect()
}

/// What an operator should know of a chain.
pub(super) fn warning(chain: &Denying) -> String {
    let then = if chain.obstructed { "netd cannot accept" } else { "netd accepts" };
    format!("{chain}; {then} the Pod network in it")
}
