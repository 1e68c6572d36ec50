//! One cluster for the tests of a binary, one after the other.
//!
//! Invariant: a test finds every node equal to the API, and leaves it so with nothing of its own in it; a cluster that a test has failed on
//! is not used again.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{Cluster, Programs};

static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

/// Runs a step on the cluster whose programs come from this overlay of our manifests, and compares the nodes with the API afterwards.
pub(crate) fn step(overlay: &'static str, step: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut kept = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = match kept.take() {
        Some(cluster) => cluster,
        None => Cluster::start(Programs::DaemonSets(overlay))?,
    };
    step(&mut cluster).and_then(|()| cluster.equals()).with_context(|| cluster.report())?;
    *kept = Some(cluster);
    Ok(())
}

/// Ends the cluster.
pub(crate) fn end() {
    *CLUSTER.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
