//! The Pod network in foreign chains that drop what is forwarded, as Docker leaves `ip filter FORWARD`.
//!
//! No chain of our own could overrule a drop in another table. Every such chain is reported, and so is that of
//! iptables-legacy, which nftables does not show and nobody but its tool writes.

use std::collections::BTreeSet;
use std::fmt;

use kernel::Chain;
use kernel::legacy::{self, Denial};
use kernel::nft::forward::{Accept, Denying};
use netstate::{IpFamily, Prefix};

/// What is to be said of a firewall, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advice {
    /// What was found.
    pub found: String,
    /// What helps.
    pub fix: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found, self.fix)
    }
}

/// What an operator should know of iptables-legacy where `networks` shall pass.
pub(crate) fn legacy(networks: &BTreeSet<Prefix>) -> Vec<Advice> {
    let of_table = |(family, table): (IpFamily, &str)| {
        let mut concerned = networks.iter().filter(|network| network.family() == family).peekable();
        concerned.peek()?;
        if !legacy::has_table(family, table) {
            return None;
        }
        let command = if family == IpFamily::V4 { "iptables-legacy" } else { "ip6tables-legacy" };
        let command = if table == "filter" { command.to_owned() } else { format!("{command} -t {table}") };
        let (how, place, network) = match legacy::forwarding(family, table) {
            Ok(chain) => {
                let network = concerned.find(|network| !chain.passes(**network))?;
                match chain.denial? {
                    Denial::Policy => ("drops what is forwarded by policy".to_owned(), "-A", network),
                    Denial::Rule => ("denies what is forwarded by a rule".to_owned(), "-I", network),
                }
            }
            Err(error) => (format!("may deny what is forwarded ({})", Chain(&error)), "-I", concerned.next()?),
        };
        Some(Advice {
            found: format!("FORWARD of {command} {how}, and netd cannot write there"),
            fix: format!("{command} {place} FORWARD -s {network} -j ACCEPT, and the same with -d"),
        })
    };
    let tables = IpFamily::ALL.into_iter().flat_map(|family| legacy::FORWARDING.map(|table| (family, table)));
    tables.filter_map(of_table).collect()
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
