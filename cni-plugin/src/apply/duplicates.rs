//! `enabledad`: waits until the Pod's IPv6 addresses are known to be nobody else's.
//!
//! Invariant: the wait ends. The kernel probes for one second after a random delay of up to one second (RFC 4862 §5.4,
//! `dad_transmits` 1); an address that takes longer belongs to a link that carries nothing.

use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kernel::Rtnl;
use kernel::address::DuplicateDetection;
use netstate::IfName;

use crate::protocol::error::{CniError, Code};

/// How long an address may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Time between two readings.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits for `addresses` of the link `ifname`, which has `index` in the namespace of `pod`.
///
/// # Errors
/// Code 100 when another machine has one of them, 11 when one is still being probed after five seconds.
pub(crate) fn await_usable(pod: &mut Rtnl, ifname: &IfName, index: u32, addresses: &[IpAddr]) -> Result<(), CniError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut unusable = pod.unusable_addresses(index)?;
        unusable.retain(|(addr, _)| addresses.contains(addr));
        if let Some((addr, _)) = unusable.iter().find(|(_, state)| *state == DuplicateDetection::Failed) {
            let msg = format!("address {addr} of {ifname} belongs to another machine on the link already");
            let advice = "duplicate address detection (enabledad) met it: find that machine, then try again";
            return Err(CniError::new(Code::Kernel, msg).details(advice));
        }
        match unusable.first() {
            None => return Ok(()),
            Some((addr, _)) if Instant::now() >= deadline => {
                let msg = format!("duplicate address detection of {addr} on {ifname} has not ended within 5 s");
                return Err(CniError::new(Code::TryAgainLater, msg).details("does the bridge forward to this port?"));
            }
            Some(_) => sleep(PAUSE),
        }
    }
}
