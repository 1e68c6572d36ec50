//! Leases: granted, revoked, asked for, kept.
//!
//! Invariant: a lease is asked for under an id chosen here, so that a request which has to be sent twice makes
//! one lease and not two.

use std::time::Duration;

use etcd_client::LeaseGrantOptions;

use super::entry::{LeaseId, TimeToLive};
use super::keep_alive::KeepAlive;
use super::store::Store;
use crate::ClusterError;
use crate::error::Reason;

impl Store {
    /// Makes a lease of `seconds` (1 or more).
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn grant(&self, seconds: u32) -> Result<LeaseId, ClusterError> {
        let lease = LeaseId::random();
        let object = format!("lease {lease} of {seconds} s");
        let options = LeaseGrantOptions::new().with_id(lease.get());
        let answer = self
            .client()
            .call("grant", &object, |client| {
                let options = options.clone();
                async move { client.lease_client().grant(i64::from(seconds), Some(options)).await }
            })
            .await;
        match answer {
            Ok(_) => Ok(lease),
            Err(error) if error.reason == Reason::LeaseExists => Ok(lease),
            Err(error) => Err(error),
        }
    }

    /// Ends a lease and every key attached to it; an unknown lease is fine.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), ClusterError> {
        let answer = self
            .client()
            .call("revoke", &format!("lease {lease}"), |client| async move {
                client.lease_client().revoke(lease.get()).await
            })
            .await;
        match answer {
            Ok(_) => Ok(()),
            Err(error) if error.reason == Reason::LeaseGone => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How long a lease has left; `None` when it is expired, revoked or was never granted.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Option<TimeToLive>, ClusterError> {
        let answer = self
            .client()
            .call("read", &format!("lease {lease}"), |client| async move {
                client.lease_client().time_to_live(lease.get(), None).await
            })
            .await?;
        // etcd answers -1 for a lease it does not know.
        let seconds = |count: i64| u64::try_from(count).ok().map(Duration::from_secs);
        Ok(seconds(answer.ttl())
            .map(|remaining| TimeToLive { remaining, granted: seconds(answer.granted_ttl()).unwrap_or_default() }))
    }

    /// Keeps a lease alive from its own task until the returned value is dropped: at once, then each third of
    /// `seconds`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn keep_alive(&self, lease: LeaseId, seconds: u32, seed: u64) -> KeepAlive {
        KeepAlive::start(self.clone(), lease, seconds, seed)
    }
}
