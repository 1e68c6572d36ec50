//! STATUS: can ADD be served, and do attached Pods still have their bridge?
//!
//! Pure. Runtimes ask every five seconds and take the whole node out of service on code 50, so a full range counts
//! only when it has been full for a while: a Pod that is just being replaced must not cost the node.

use std::time::Duration;

use crate::protocol::error::{CniError, Code};
use crate::protocol::range::RangeSet;

/// How long a range must have been full.
pub(crate) const FULL_FOR: Duration = Duration::from_secs(30);

/// What STATUS found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The bridge exists and is up; `None`: there is no such link.
    pub bridge_up: Option<bool>,
    /// Some attachment has a record of this network.
    pub has_attachments: bool,
    /// Taken addresses per range set, in order.
    pub taken: Vec<u128>,
    /// How long ago an address was given out; `None` when that is unknown.
    pub last_reserved: Option<Duration>,
}

/// Judges the network `name` with `bridge` and `sets`.
///
/// # Errors
/// Code 50 when ADD cannot be served, 51 when attached Pods have lost their bridge as well.
pub(crate) fn judge(name: &str, bridge: &str, sets: &[RangeSet], facts: &Facts) -> Result<(), CniError> {
    if facts.has_attachments && facts.bridge_up != Some(true) {
        let state = if facts.bridge_up.is_none() { "is gone" } else { "is down" };
        return Err(CniError::new(Code::LimitedConnectivity, format!("bridge {bridge} of network {name} {state}"))
            .details("attached Pods have lost connectivity; delete their sandboxes to have them attached anew"));
    }
    let is_recent = facts.last_reserved.is_some_and(|ago| ago < FULL_FOR);
    let full = sets.iter().zip(&facts.taken).find(|(set, taken)| **taken >= set.capacity());
    match full.filter(|_| !is_recent) {
        None => Ok(()),
        Some((set, taken)) => {
            let msg = format!("network {name}: all {taken} IP addresses of range set {set} are taken");
            Err(CniError::new(Code::NotAvailable, msg).details("remove Pods from this node"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::range::Range;

    fn sets() -> Vec<RangeSet> {
        let range = Range::new("10.0.0.0/29".parse().unwrap(), None, None, None).unwrap();
        vec![RangeSet::new(vec![range]).unwrap()]
    }

    fn judged(bridge_up: Option<bool>, has_attachments: bool, taken: u128, ago: Option<u64>) -> Option<Code> {
        let last_reserved = ago.map(Duration::from_secs);
        let facts = Facts { bridge_up, has_attachments, taken: vec![taken], last_reserved };
        judge("cbr0", "cbr0", &sets(), &facts).err().map(|error| error.code)
    }

    #[test]
    fn a_fresh_node_and_a_busy_one_are_ready() {
        assert_eq!(judged(None, false, 0, None), None);
        assert_eq!(judged(Some(true), true, 4, Some(1)), None);
    }

    #[test]
    fn a_full_range_counts_only_after_a_while() {
        assert_eq!(judged(Some(true), true, 5, Some(29)), None);
        assert_eq!(judged(Some(true), true, 5, Some(30)), Some(Code::NotAvailable));
        assert_eq!(judged(Some(true), true, 5, None), Some(Code::NotAvailable));
        assert_eq!(judged(Some(true), true, 4, Some(3600)), None);
    }

    #[test]
    fn attached_pods_without_their_bridge_are_worse() {
        assert_eq!(judged(None, true, 1, None), Some(Code::LimitedConnectivity));
        assert_eq!(judged(Some(false), true, 1, None), Some(Code::LimitedConnectivity));
        assert_eq!(judged(Some(false), false, 0, None), None, "ADD sets the bridge up");
        for (bridge_up, words) in
            [(None, "bridge br0 of network net is gone"), (Some(false), "bridge br0 of network net is down")]
        {
            let facts = Facts { bridge_up, has_attachments: true, taken: vec![0], last_reserved: None };
            assert_eq!(judge("net", "br0", &sets(), &facts).unwrap_err().msg, words);
        }
    }
}
