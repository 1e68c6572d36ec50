//! What notifications of rtnetlink say, for fuzzing.
//!
//! Invariant: what is followed and what is reported grow with the messages, not with what they say.

use std::collections::BTreeSet;

use netstate::IfName;

use super::interest::{Filter, Interest};

/// Reads a datagram as the monitor of a node does.
pub(crate) fn notifications(datagram: &[u8]) {
    let devices = Some(BTreeSet::from([IfName::literal("flannel.1"), IfName::literal("dmy")]));
    let wants: super::WantsRoute = std::sync::Arc::new(|key, protocol| key.dst.len() > 8 && protocol == 121);
    let interest = Interest { devices, kinds: BTreeSet::from(["vxlan"]), routes: Some(wants), ..Interest::default() };
    for interest in [interest, Interest::default()] {
        let (mut filter, mut events) = (Filter::new(interest), BTreeSet::new());
        filter.read(datagram, &mut events);
        assert!(events.len() <= datagram.len() / 16, "{events:?} in {} bytes", datagram.len());
    }
}
