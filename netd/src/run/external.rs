//! The interface towards the other nodes, followed while the daemon runs.
//!
//! Invariant: as long as the interface has the address that this node uses, that address stays, whatever else changes;
//! only when it is gone the choice is made anew. A host without any interface to choose keeps what it had.

use std::time::Duration;

use kernel::KernelError;
use tokio::time::Instant;

use super::facts;
use crate::choose::interface::{self, Wanted};

/// How long links and addresses must have been quiet before they are read: they rarely change alone.
const SETTLE: Duration = Duration::from_millis(200);

/// The interface that is used, and when it is read again.
pub(super) struct External {
    wanted: Wanted,
    pub(super) current: interface::External,
    at: Option<Instant>,
}

impl External {
    pub(super) const fn new(wanted: Wanted, current: interface::External) -> Self {
        Self { wanted, current, at: None }
    }

    /// A link or an address has changed.
    pub(super) fn note(&mut self) {
        self.at.get_or_insert(Instant::now() + SETTLE);
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.at
    }

    /// Reads the interface; returns it when it differs from before.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) async fn read(&mut self) -> Result<Option<interface::External>, KernelError> {
        self.at = None;
        let found = facts::interface(&self.current.interface).await?;
        let now = match found.and_then(|found| self.current.on(&found)) {
            Some(same) => same,
            None => match interface::choose(&self.wanted, &facts::gather(self.wanted.can_reach).await?) {
                Ok(chosen) => chosen,
                Err(problem) => {
                    tracing::warn!(%problem, "this node's address is gone and there is no other; it stays as it was");
                    return Ok(None);
                }
            },
        };
        Ok((now != self.current).then(|| {
            self.current = now.clone();
            now
        }))
    }
}
