//! What verbs ask etcd for: the folder of leases, and how long each has left.

use cluster::ClusterError;
use cluster::etcd::{Entry, Prefix, Store, TimeToLive};

/// The folder of leases.
#[must_use]
pub(super) fn subnets(prefix: &Prefix) -> Prefix {
    prefix.folder("subnets")
}

/// How long the key has left; `None` for one that stays.
///
/// # Errors
/// When nobody answers or the cluster refuses.
pub(super) async fn remaining(store: &Store, entry: &Entry) -> Result<Option<TimeToLive>, ClusterError> {
    match entry.lease {
        Some(lease) => store.time_to_live(lease).await,
        None => Ok(None),
    }
}
