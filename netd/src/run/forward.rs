//! Foreign chains that drop what is forwarded: an accept for the Pod network at their head, found again when somebody
//! takes it away.
//!
//! Our own `forward` chain cannot overrule a drop in another table (Docker sets the policy of `ip filter FORWARD` to
//! DROP). Invariant: only rules with our comment are ever touched there, and every such chain is reported.

use std::collections::BTreeSet;
use std::time::Duration;

use kernel::KernelError;
use kernel::nft::Nft;
use kernel::nft::forward::DropChain;
use netstate::Prefix;
use reconcile::{Pass, Status};

use crate::plan;

/// Comment of our rules in foreign chains.
const MARKER: &str = "netd: Pod network";

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// The foreign chains as they were seen last.
pub(super) struct Forward {
    nft: Nft,
    networks: BTreeSet<Prefix>,
    chains: Vec<DropChain>,
    /// Something may have changed since `chains` was read.
    stale: bool,
    failure: Option<(String, Duration)>,
}

impl Forward {
    pub(super) const fn new(nft: Nft) -> Self {
        Self { nft, networks: BTreeSet::new(), chains: Vec::new(), stale: true, failure: None }
    }

    /// Sets the networks to accept; none takes our rules away.
    pub(super) fn want(&mut self, networks: BTreeSet<Prefix>) {
        if self.networks != networks {
            self.networks = networks;
            self.stale = true;
        }
    }

    pub(super) const fn invalidate(&mut self) {
        self.stale = true;
    }

    /// Looks at the foreign chains if need be, and makes them accept what is wanted.
    pub(super) fn pass(&mut self, now: Duration, pass: &mut Pass) {
        if !self.stale || self.failure.as_ref().is_some_and(|(_, next)| *next > now) {
            return;
        }
        match self.settle() {
            Ok(changed) => {
                self.stale = false;
                self.failure = None;
                pass.upserted += usize::from(changed);
            }
            Err(error) => {
                let text = error.to_string();
                pass.failed += 1;
                pass.errors.push(format!("forward: {text}"));
                self.failure = Some((text, now + PAUSE));
            }
        }
    }

    /// Answers whether something had to be changed.
    fn settle(&mut self) -> Result<bool, KernelError> {
        let own = BTreeSet::from([plan::TABLE]);
        let before = self.nft.forward_drops(&own, MARKER)?;
        self.chains = self.nft.accept_forwarded(&own, MARKER, &self.networks)?;
        if self.chains != before && !self.networks.is_empty() {
            for chain in &self.chains {
                tracing::warn!(
                    table = %chain.table, chain = chain.chain.as_str(),
                    "a foreign chain drops forwarded packets by policy; the Pod network is accepted at its head"
                );
            }
        }
        Ok(self.chains != before)
    }

    pub(super) fn next_try(&self) -> Option<Duration> {
        self.failure.as_ref().map(|(_, next)| *next)
    }

    /// Each foreign chain counts as a row.
    pub(super) fn status(&self) -> Status {
        let mut status = Status { desired: self.chains.len(), done: self.chains.len(), ..Status::default() };
        if let Some((reason, _)) = &self.failure {
            status.observe_error = Some(reason.clone());
            status.done = 0;
        }
        status
    }

    /// What an operator should know.
    pub(super) fn warnings(&self) -> Vec<String> {
        let tell = |chain: &DropChain| {
            format!(
                "foreign chain {} {} drops forwarded packets by policy; netd accepts the Pod network in it",
                chain.table,
                chain.chain.as_str()
            )
        };
        self.chains.iter().filter(|chain| !chain.accepted.is_empty()).map(tell).collect()
    }
}
