//! Where HTTP is served, followed while the daemon runs.
//!
//! Invariant: an address that stays wanted keeps its listener, so that nobody who asks there is turned away; one that is not wanted any
//! more is closed before a new one is opened, and is not missed by whoever judges the loops.

use std::sync::{Arc, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::pages::Site;
use super::server::{Address, LIMIT, Routes, serve};
use crate::liveness::Progress;

/// A listener while it is open; dropping this closes it.
struct Open {
    at: (Address, Routes),
    task: JoinHandle<()>,
    name: String,
    progress: Progress,
    site: Arc<Site>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.site.liveness.forget(&self.name, &self.progress);
        self.task.abort();
        let (address, routes) = &self.at;
        self.site.vitals.lock().unwrap_or_else(PoisonError::into_inner).note(address, *routes, None);
    }
}

impl Open {
    fn begin((address, routes): (Address, Routes), site: &Arc<Site>) -> Self {
        let name = format!("HTTP at {address}");
        let heartbeat = site.liveness.heartbeat(name.clone(), LIMIT);
        let progress = heartbeat.progress();
        let task = tokio::spawn(serve(address.clone(), routes, Arc::clone(site), heartbeat));
        Self { at: (address, routes), task, name, progress, site: Arc::clone(site) }
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
