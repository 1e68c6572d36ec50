//! Whether somebody changed devices or peers, found out without reading what they are.
//!
//! WireGuard sends no notifications, so its peers have to be read again and again. Invariant: what traffic changes (the
//! counters, the time of the last handshake) is not part of the fingerprint; everything that somebody can set is.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use netstate::IfName;

use super::wire;
use crate::attribute;
use crate::error::KernelError;
use crate::genl::Genl;
use crate::socket::Fault;

/// What some devices and their peers are like, in one number.
#[derive(Debug)]
pub struct Fingerprint {
    genl: Genl,
    devices: Vec<IfName>,
    last: Option<u64>,
}

impl Fingerprint {
    /// The fingerprint of `devices`, not taken yet.
    ///
    /// # Errors
    /// [`crate::Cause::Missing`] when this kernel has no WireGuard.
    pub fn open(devices: impl IntoIterator<Item = IfName>) -> Result<Self, KernelError> {
        let genl = Genl::open(wire::FAMILY, wire::VERSION)?;
        Ok(Self { genl, devices: devices.into_iter().collect(), last: None })
    }

    /// True when it is another one than the last time, and the first time.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn has_changed(&mut self) -> Result<bool, KernelError> {
        let mut hasher = DefaultHasher::new();
        for link in &self.devices {
            match self.genl.dump(wire::GET_DEVICE, wire::device(link)) {
                Ok(messages) => messages.iter().for_each(|message| take_device(message, &mut hasher)),
                // Not there, which differs from whatever was there.
                Err(Fault::Nack(nack)) => nack.errno.hash(&mut hasher),
                Err(fault) => return Err(KernelError::new("list peers of", link, fault)),
            }
        }
        let now = Some(hasher.finish());
        Ok(std::mem::replace(&mut self.last, now) != now)
    }
}

fn take_device(message: &[u8], hasher: &mut DefaultHasher) {
    for (kind, value) in attribute::iter(message) {
        match kind {
            wire::PEERS => attribute::iter(value).for_each(|(_, peer)| take_peer(peer, hasher)),
            _ => (kind, value).hash(hasher),
        }
    }
}

fn take_peer(peer: &[u8], hasher: &mut DefaultHasher) {
    let set = attribute::iter(peer).filter(|(kind, _)| !wire::OF_TRAFFIC.contains(kind));
    set.for_each(|attribute| attribute.hash(hasher));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribute::Writer;

    fn taken(fill: impl FnOnce(&mut Writer)) -> u64 {
        let mut message = wire::device(&IfName::literal("wg0"));
        message.nest(wire::PEERS, |peers| {
            peers.nest(0, fill);
        });
        let (mut hasher, message) = (DefaultHasher::new(), message.finish());
        take_device(&message, &mut hasher);
        hasher.finish()
    }

    #[test]
    fn traffic_is_no_part_of_it_and_whatever_can_be_set_is() {
        let peer = |kind: u16, value: u8| {
            taken(|peer| {
                peer.put(1, &[9; 32]).put(kind, &[value; 8]);
            })
        };
        for kind in wire::OF_TRAFFIC {
            assert_eq!(peer(kind, 1), peer(kind, 2), "{kind}");
        }
        for kind in [2, 4, 5, 9] {
            assert_ne!(peer(kind, 1), peer(kind, 2), "{kind}");
        }
    }
}
