//! What the chain that ran here before us left of a container in the firewall.
//!
//! Searched for only where no record of ours says that we made the attachment. Invariant: nothing is listed unless a
//! chain or table of that chain is there; chains that all containers share (CNI-HOSTPORT-DNAT, -SETMARK, -MASQ) stay,
//! as its own DEL leaves them. iptables-legacy keeps its rules where netlink does not reach; they are not touched, and
//! DEL says so on standard error.

use std::collections::BTreeSet;
use std::io::Write;

use kernel::nft::{Fate, ForeignRule, Nft};
use netstate::nft::{Name, TableKey};

use crate::plan::predecessor;
use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::error::CniError;

/// Which plugins of the predecessor's chain a call stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of them.
    Chain,
    /// portmap alone.
    Ports,
}

/// Removes the rules of `attachment` to `network`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn remove(network: &str, attachment: &Attachment) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    let own = predecessor::masquerade_of(network, attachment);
    remove_rules(&mut nft, &[predecessor::masquerade_table()], |comment| comment.starts_with(&own))?;
    remove_of_container(&mut nft, network, &attachment.container, Part::Chain)
}

/// Says on standard error that rules of iptables-legacy for `container`, which the predecessor's chain attached to `network`,
/// may be left; nothing where that table is not in use.
pub(crate) fn report_legacy(network: &str, container: &ContainerId) {
    let is_used = |file: &str| std::fs::read_to_string(file).is_ok_and(|tables| tables.lines().any(|t| t == "nat"));
    if ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].into_iter().any(is_used) {
        let [masquerade, ports, _] = predecessor::chains(network, container);
        // Whether anybody reads it does not matter to DEL.
        let _ = writeln!(
            std::io::stderr(),
            "netd-cni: container {container} of network {network} was attached by another chain of plugins, and \
             iptables-legacy has a table nat here, which netd-cni does not change: if chains {masquerade} or {ports} are \
             in it (iptables-legacy -t nat -S), remove them there"
        );
    }
}

/// Removes the rules of `container` in `network`, whichever its interface.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn remove_container(network: &str, container: &ContainerId) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    remove_of_container(&mut nft, network, container, Part::Chain)
}

/// Removes the rules for the host ports of `container` in `network`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn remove_ports(network: &str, container: &ContainerId) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    remove_of_container(&mut nft, network, container, Part::Ports)
}

/// Removes the rules of every container of `network` that is not among `valid`.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub(crate) fn sweep(network: &str, valid: &[Attachment]) -> Result<(), CniError> {
    let mut nft = Nft::open()?;
    let is_stale = |rule: &ForeignRule| {
        let (of, container) = predecessor::read_comment(rule.comment.as_deref()?)?;
        let is_valid = valid.iter().any(|attachment| attachment.container == container);
        Some(of == network && !is_valid)
    };
    let fate = |rule: &ForeignRule| {
        let is_ours = rule.target.as_ref().is_some_and(predecessor::is_chain);
        if is_ours && is_stale(rule) == Some(true) { Fate::GoWithTarget } else { Fate::Stay }
    };
    for table in predecessor::nat_tables() {
        if nft.has_table(&table)? {
            nft.remove_foreign(&table, &BTreeSet::new(), fate)?;
        }
    }
    let of_network = predecessor::masquerade_of_network(network);
    let stay: Vec<String> = valid.iter().map(|attachment| predecessor::masquerade_of(network, attachment)).collect();
    let is_stale =
        |comment: &str| comment.starts_with(&of_network) && !stay.iter().any(|valid| comment.starts_with(valid));
    remove_rules(&mut nft, &[predecessor::masquerade_table()], is_stale)
}

/// What is named after the container alone.
fn remove_of_container(nft: &mut Nft, network: &str, container: &ContainerId, part: Part) -> Result<(), CniError> {
    remove_rules(nft, &predecessor::hostport_tables(), |comment| comment == container.as_str())?;
    let [masquerade, ports, old_ports] = predecessor::chains(network, container);
    let mut names: BTreeSet<Name> = [ports, old_ports].into();
    names.extend((part == Part::Chain).then_some(masquerade));
    for table in predecessor::nat_tables() {
        let mut is_there = false;
        for name in &names {
            is_there = is_there || nft.has_chain(&table, name)?;
        }
        if is_there {
            nft.remove_foreign(&table, &names, |_| Fate::Stay)?;
        }
    }
    Ok(())
}

fn remove_rules(nft: &mut Nft, tables: &[TableKey], is_left: impl Fn(&str) -> bool) -> Result<(), CniError> {
    let fate = |rule: &ForeignRule| match &rule.comment {
        Some(comment) if is_left(comment) => Fate::Go,
        _ => Fate::Stay,
    };
    for table in tables {
        if nft.has_table(table)? {
            nft.remove_foreign(table, &BTreeSet::new(), fate)?;
        }
    }
    Ok(())
}
