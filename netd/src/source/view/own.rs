//! This node's own key as the store shows it.
//!
//! Invariant: what is older than the claim says nothing; what this node is about to write is nobody else's doing.

use super::View;
use crate::format::lease::{Lease, LeaseAttrs};

/// How this node's own key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OwnKey {
    /// There, and it names this node.
    Held,
    /// It is not there, since this revision of the store if that is known.
    Gone(Option<i64>),
    /// It names somebody else, or cannot be read, since this revision.
    Taken(String, i64),
    /// It names this node and is bound to another end than the one that this node keeps away (`None`: it has none), since
    /// this revision.
    Rebound(Option<i64>, i64),
    /// Nothing is known that is newer than the claim.
    Unknown,
}

/// The lease that this node holds.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) lease: Lease,
    /// What its value is being changed to.
    next: Option<LeaseAttrs>,
    /// What ends it, by the store's number.
    token: Option<i64>,
    /// Somebody else bound it to that.
    rebound: bool,
    /// Revision in which it was seen to be ours.
    revision: i64,
    /// The key is not there, since this revision; unknown for a listing.
    pub(super) gone: Option<Option<i64>>,
}

impl View {
    /// Sets the lease that this node holds and what ends it, as of `revision`.
    pub(crate) fn hold(&mut self, lease: Lease, token: Option<i64>, revision: i64) {
        let rebound = match self.own_key() {
            OwnKey::Rebound(other, _) => other == token,
            _ => self.own.as_ref().is_some_and(|own| own.rebound && own.token == token),
        };
        let same = self.own.take().filter(|own| own.lease.key == lease.key);
        // A deletion that came after the claim is still a loss.
        let gone = same.and_then(|own| own.gone).filter(|gone| gone.is_some_and(|gone| gone > revision));
        self.own = Some(Own { lease, next: None, token, rebound, revision, gone });
    }

    /// This node is about to write `attrs` under its key.
    pub(crate) fn await_own(&mut self, attrs: LeaseAttrs) {
        if let Some(own) = &mut self.own {
            own.next = Some(attrs);
        }
    }

    /// What another program bound the own key to, if it did: a lease of the store, or nothing that ends it.
    #[must_use]
    pub(crate) fn rebound(&self) -> Option<Option<i64>> {
        match self.own_key() {
            OwnKey::Rebound(token, _) => Some(token),
            _ => self.own.as_ref().filter(|own| own.rebound).map(|own| own.token),
        }
    }

    /// How this node's own key stands.
    #[must_use]
    pub(crate) fn own_key(&self) -> OwnKey {
        let Some(own) = &self.own else { return OwnKey::Unknown };
        if let Some(revision) = own.gone {
            return OwnKey::Gone(revision);
        }
        let key = own.lease.key;
        if let Some((reason, revision)) = self.invalid.get(&key.to_string()) {
            return if *revision > own.revision { OwnKey::Taken(reason.clone(), *revision) } else { OwnKey::Unknown };
        }
        match self.leases.get(&key) {
            Some(stored) if stored.lease.attrs.public_ips == own.lease.attrs.public_ips => {
                let rebound = stored.token != own.token && stored.revision > own.revision;
                if rebound { OwnKey::Rebound(stored.token, stored.revision) } else { OwnKey::Held }
            }
            Some(stored) if stored.revision > own.revision => {
                OwnKey::Taken(format!("leased to {}", stored.lease.attrs.public_ips.list()), stored.revision)
            }
            Some(_) | None => OwnKey::Unknown,
        }
    }

    /// The revision in which somebody else has written under the own key what stood there before: a second node with the
    /// same address and nothing else that tells them apart, which asks in this way whether the first one lives.
    #[must_use]
    pub(crate) fn asked(&self) -> Option<i64> {
        let own = self.own.as_ref().filter(|own| own.next.is_none() && own.gone.is_none())?;
        let stored = self.leases.get(&own.lease.key).filter(|stored| stored.revision > own.revision)?;
        let same = stored.lease.attrs == own.lease.attrs && stored.token.is_some() && stored.token == own.token;
        (same && own.lease.attrs.backend.is_common()).then_some(stored.revision)
    }

    /// The value under the own key when it names this node's address but is not what this node wrote: a second node
    /// with the same address.
    #[must_use]
    pub(crate) fn contested(&self) -> Option<&LeaseAttrs> {
        let own = self.own.as_ref()?;
        let stored = self.leases.get(&own.lease.key).filter(|stored| stored.revision > own.revision)?;
        let (attrs, ours) = (&stored.lease.attrs, &own.lease.attrs);
        let strange = attrs != ours && own.next.as_ref() != Some(attrs);
        (attrs.public_ips == ours.public_ips && strange).then_some(attrs)
    }
}
