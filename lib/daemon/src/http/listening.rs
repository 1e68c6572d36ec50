//! Where HTTP is served, followed while the daemon runs.
//!
//! Invariant: an address that stays wanted keeps its listener, so that nobody who asks there is turned away; one that is not wanted any
//! more is closed before a new one is opened, and is not missed by whoever judges the loops.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::pages::Site;
use super::server::{Address, LIMIT, Routes, serve};
use crate::liveness::{Liveness, Progress};

/// A listener while it is open; dropping this closes it.
struct Open {
    at: (Address, Routes),
    task: JoinHandle<()>,
    name: String,
    progress: Progress,
    liveness: Liveness,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.liveness.forget(&self.name, &self.progress);
        self.task.abort();
    }
}

impl Open {
    fn begin((address, routes): (Address, Routes), site: &Arc<Site>) -> Self {
        let (name, liveness) = (format!("HTTP at {address}"), site.liveness.clone());
        let heartbeat = liveness.heartbeat(name.clone(), LIMIT);
        let progress = heartbeat.progress();
        let task = tokio::spawn(serve(address.clone(), routes, Arc::clone(site), heartbeat));
        Self { at: (address, routes), task, name, progress, liveness }
    }
}

/// Serves `site` wherever is wanted, for as long as the future is polled.
pub async fn serve_wherever(mut wanted: watch::Receiver<Vec<(Address, Routes)>>, site: Arc<Site>) {
    let mut open: Vec<Open> = Vec::new();
    loop {
        let places = wanted.borrow_and_update().clone();
        open.retain(|open| places.contains(&open.at));
        for place in places {
            if !open.iter().any(|open| open.at == place) {
                open.push(Open::begin(place, &site));
            }
        }
        if wanted.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
