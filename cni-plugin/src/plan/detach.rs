//! DEL: from what is known of an attachment to what must be removed.
//!
//! Nothing is required: neither namespace nor previous result nor a record. The order is that of the host's interest:
//! the link first, so that nothing answers for the address any more, the address last.

use std::net::IpAddr;

use netstate::IfName;

use crate::protocol::attachment::Attachment;

/// What DEL found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// A link has the name of the attachment's host end.
    pub host_link: bool,
    /// Addresses reserved for the attachment.
    pub addresses: Vec<IpAddr>,
    /// The Pod's namespace can be entered, and a veth in it has the interface's name: its peer here, by name.
    pub foreign_peer: Option<IfName>,
}

/// What DEL removes, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Detach {
    /// Links, by the name of their host end.
    pub links: Vec<IfName>,
    /// Addresses to release.
    pub addresses: Vec<IpAddr>,
}

/// Plans DEL. A pair whose host end has another name than ours was made by the chain that ran here before us; it is
/// removed when a reservation shows that the attachment was that chain's.
#[must_use]
pub(crate) fn plan(attachment: &Attachment, facts: &Facts) -> Detach {
    let mut links = Vec::new();
    if facts.host_link {
        links.push(attachment.host_link().clone());
    } else if !facts.addresses.is_empty() {
        links.extend(facts.foreign_peer.clone());
    }
    Detach { links, addresses: facts.addresses.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::attachment::ContainerId;

    fn attachment() -> Attachment {
        Attachment::new(ContainerId::new("c1").unwrap(), IfName::new("eth0").unwrap())
    }

    #[test]
    fn an_unknown_attachment_needs_nothing() {
        assert_eq!(plan(&attachment(), &Facts::default()), Detach::default());
    }

    #[test]
    fn own_link_is_removed_by_its_name() {
        let addr: IpAddr = "172.7.21.2".parse().unwrap();
        let plan = plan(&attachment(), &Facts { host_link: true, addresses: vec![addr], foreign_peer: None });
        assert_eq!((plan.links, plan.addresses), (vec![attachment().host_link().clone()], vec![addr]));
    }

    #[test]
    fn a_foreign_pair_is_removed_only_with_a_reservation_to_show_for_it() {
        let peer = IfName::new("veth0badcafe").unwrap();
        let mut facts = Facts { foreign_peer: Some(peer.clone()), ..Facts::default() };
        assert!(plan(&attachment(), &facts).links.is_empty());
        facts.addresses = vec!["172.7.21.2".parse().unwrap()];
        assert_eq!(plan(&attachment(), &facts).links, [peer]);
    }
}
