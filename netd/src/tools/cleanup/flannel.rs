//! What flannel leaves: devices of its names, nft tables, chains of iptables-nft, and what is out of reach.
//!
//! Names are flannel's (pkg/trafficmngr, pkg/backend): they are the only sign of whose it is.

use std::collections::BTreeSet;
use std::fs;

use kernel::KernelError;
use kernel::nft::{Fate, ForeignRule, Nft};
use netstate::nft::{Family, Name, TableKey};
use netstate::{IfName, LinkKind};

/// Tables of `EnableNFTables`.
#[must_use]
pub(super) fn nft_tables() -> [TableKey; 2] {
    [
        TableKey { family: Family::Ip, name: Name::literal("flannel-ipv4") },
        TableKey { family: Family::Ip6, name: Name::literal("flannel-ipv6") },
    ]
}

/// Tables of iptables-nft, each with flannel's chain in it.
fn iptables() -> [(TableKey, Name); 4] {
    let table =
        |family, name: &'static str, chain| (TableKey { family, name: Name::literal(name) }, Name::literal(chain));
    [
        table(Family::Ip, "nat", "FLANNEL-POSTRTG"),
        table(Family::Ip, "filter", "FLANNEL-FWD"),
        table(Family::Ip6, "nat", "FLANNEL-POSTRTG"),
        table(Family::Ip6, "filter", "FLANNEL-FWD"),
    ]
}

/// Comments of its rules, which older versions wrote into chains that everybody uses.
const COMMENTS: [&str; 2] = ["flanneld masq", "flanneld forward"];

/// True for a device of flannel's by name and kind.
#[must_use]
pub(super) fn is_device(name: &IfName, kind: &LinkKind) -> bool {
    let number = |start: &str| {
        let rest = name.as_str().strip_prefix(start);
        rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match kind {
        LinkKind::Vxlan(_) => number("flannel.") || number("flannel-v6."),
        LinkKind::Wireguard => matches!(name.as_str(), "flannel-wg" | "flannel-wg-v6"),
        LinkKind::Ipip(_) => name.as_str() == "flannel.ipip",
        LinkKind::Other(kind) => kind == "tun" && number("flannel"),
        _ => false,
    }
}

/// The process of a running flanneld that is not this program's.
#[must_use]
pub(super) fn process() -> Option<u32> {
    let own = fs::read_link("/proc/self/exe").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    processes.find(|process| {
        let named = fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "flanneld");
        let same_host =
            fs::read_link(format!("/proc/{process}/ns/net")).ok() == fs::read_link("/proc/self/ns/net").ok();
        named && same_host && fs::read_link(format!("/proc/{process}/exe")).ok() != own
    })
}

/// The chains and rules that are there, one text each.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn chains(nft: &mut Nft) -> Result<Vec<String>, KernelError> {
    let mut found = Vec::new();
    for (table, chain) in iptables() {
        if !nft.has_table(&table)? {
            continue;
        }
        if nft.has_chain(&table, &chain)? {
            found.push(format!("nft chain {table} {chain}, with the rules that lead there"));
        }
        let loose = nft
            .foreign_rules(&table)?
            .into_iter()
            .filter(|rule| is_left(rule) && rule.chain != chain && rule.target.as_ref() != Some(&chain));
        found.extend(loose.map(|rule| {
            let comment = rule.comment.unwrap_or_default();
            format!("nft rule in {table} {} \"{comment}\"", rule.chain)
        }));
    }
    Ok(found)
}

fn is_left(rule: &ForeignRule) -> bool {
    rule.comment.as_deref().is_some_and(|comment| COMMENTS.contains(&comment))
}

/// Removes them.
///
/// # Errors
/// When the kernel refuses; the table of which it does is as it was.
pub(super) fn remove_chains(nft: &mut Nft) -> Result<(), KernelError> {
    for (table, chain) in iptables() {
        if nft.has_table(&table)? {
            let fate = |rule: &ForeignRule| if is_left(rule) { Fate::Go } else { Fate::Stay };
            nft.remove_foreign(&table, &BTreeSet::from([chain]), fate)?;
        }
    }
    Ok(())
}

/// Commands for what netlink does not reach, where a table of iptables-legacy is in use.
#[must_use]
pub(super) fn legacy() -> Option<String> {
    let mut commands = String::new();
    for (file, command) in
        [("/proc/net/ip_tables_names", "iptables-legacy"), ("/proc/net/ip6_tables_names", "ip6tables-legacy")]
    {
        let tables = fs::read_to_string(file).unwrap_or_default();
        for (table, hook, chain, comment) in [
            ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        ] {
            if tables.lines().any(|line| line == table) {
                commands.push_str(&format!(
                    "  {command} -t {table} -D {hook} -m comment --comment \"{comment}\" -j {chain}; \
                     {command} -t {table} -F {chain}; {command} -t {table} -X {chain}\n"
                ));
            }
        }
    }
    (!commands.is_empty()).then_some(commands)
}

#[cfg(test)]
mod tests {
    use netstate::VxlanOptions;

    use super::*;

    #[test]
    fn devices_are_flannels_by_name_and_kind() {
        let is = |name: &str, kind: LinkKind| is_device(&name.parse().unwrap(), &kind);
        let options = VxlanOptions::new(1, 8472);
        let vxlan = || LinkKind::Vxlan(options.clone());
        assert!(is("flannel.1", vxlan()) && is("flannel-v6.1", vxlan()) && is("flannel-wg", LinkKind::Wireguard));
        assert!(is("flannel0", LinkKind::Other("tun".to_owned())));
        assert!(!is("flannel.1", LinkKind::Dummy) && !is("flannel.x", vxlan()) && !is("flannel.", vxlan()));
        assert!(!is("cilium_vxlan", vxlan()) && !is("wg0", LinkKind::Wireguard));
    }
}
