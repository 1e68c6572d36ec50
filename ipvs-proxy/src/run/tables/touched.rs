//! What a notification of the kernel is about.
//!
//! Invariant: a table that a notification may be about is listed again; one that it cannot be about is not.

use kernel::nft::Change;
use kernel::watch::Event;

use crate::dataplane;

/// A table that somebody else may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touched {
    /// Links or addresses.
    Links,
    /// Local routes of whole networks.
    Routes,
    /// The nft table.
    Nft,
    /// Tables of others.
    ForeignNft,
}

impl Touched {
    /// What a notification of rtnetlink is about.
    pub(crate) fn by_rtnl(event: Event) -> Vec<Self> {
        match event {
            // Links of others, and their addresses, are no rows of ours.
            // A link that goes down takes its routes along, and nobody says so.
            Event::Link | Event::Resync => vec![Self::Links, Self::Routes],
            Event::Address | Event::NewAddress => vec![Self::Links],
            Event::Route => vec![Self::Routes],
            _ => Vec::new(),
        }
    }

    /// What a notification of nftables is about.
    pub(crate) fn by_nft(change: &Change) -> Vec<Self> {
        match change {
            Change::Table { table, .. } if !dataplane::tables().contains(table) => vec![Self::ForeignNft],
            Change::Table { .. } => vec![Self::Nft],
            Change::Lost => vec![Self::Nft, Self::ForeignNft],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_others_have_nothing_listed() {
        for event in [Event::Address, Event::NewAddress] {
            assert_eq!(Touched::by_rtnl(event), [Touched::Links], "{event:?}");
        }
        for event in [Event::Link, Event::Resync] {
            assert_eq!(Touched::by_rtnl(event), [Touched::Links, Touched::Routes], "{event:?}");
        }
        assert_eq!(Touched::by_rtnl(Event::Route), [Touched::Routes]);
        for event in [Event::OtherLink, Event::OtherRoute, Event::DefaultRoute, Event::Neighbour] {
            assert_eq!(Touched::by_rtnl(event), [], "{event:?}");
        }
    }
}
