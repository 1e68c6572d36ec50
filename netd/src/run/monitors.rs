//! Notifications of the kernel, on their way to the thread that owns the tables.
//!
//! Invariant: between the opening of a table and the first notification nothing is missed: the listeners are open before
//! they ask for a new listing of everything. A listener that breaks is opened again, and says so again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kernel::KernelError;
use kernel::nft::{Change, Stream};
use kernel::watch::{Event, Watch};
use tokio::sync::Notify;

use super::tables::{Notification, Ports};
use super::worker::Notifier;
use crate::plan;

/// Pause before a broken listener is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts listening; `ports` are those of our own conversations. Must be called on a tokio runtime. The listeners end
/// with the thread that they notify; `links` is rung when a link or an address changed.
///
/// # Errors
/// When the kernel refuses a socket.
pub(super) fn listen(ports: Ports, notifier: &Notifier, links: &Arc<Notify>) -> Result<(), KernelError> {
    let (watch, stream) = (Watch::open(ports.rtnl.clone())?, Stream::open(ports.nft.clone())?);
    tokio::spawn(follow_rtnl(watch, ports.rtnl, notifier.clone(), Arc::clone(links)));
    tokio::spawn(follow_nft(stream, ports.nft, notifier.clone()));
    Ok(())
}

async fn follow_rtnl(mut watch: Watch, ports: BTreeSet<u32>, notifier: Notifier, links: Arc<Notify>) {
    while notifier.changed(Notification::Rtnl(Event::Resync)) {
        links.notify_one();
        while let Some(event) = watch.next().await {
            if matches!(event, Event::Link | Event::Address | Event::Resync) {
                links.notify_one();
            }
            if !notifier.changed(Notification::Rtnl(event)) {
                return;
            }
        }
        tracing::warn!("the rtnetlink monitor ended; opening it again");
        watch = loop {
            tokio::time::sleep(PAUSE).await;
            match Watch::open(ports.clone()) {
                Ok(watch) => break watch,
                Err(error) => tracing::warn!(%error, "no rtnetlink monitor; the audit has to do"),
            }
        };
    }
}

async fn follow_nft(mut stream: Stream, ports: BTreeSet<u32>, notifier: Notifier) {
    loop {
        if !notifier.changed(Notification::OwnNft) || !notifier.changed(Notification::ForeignNft) {
            return;
        }
        let error = loop {
            match stream.next().await {
                Ok(changes) => {
                    if !changes.into_iter().flat_map(notifications).all(|what| notifier.changed(what)) {
                        return;
                    }
                }
                Err(error) => break error,
            }
        };
        tracing::warn!(%error, "the nftables monitor ended; opening it again");
        stream = loop {
            tokio::time::sleep(PAUSE).await;
            match Stream::open(ports.clone()) {
                Ok(stream) => break stream,
                Err(error) => tracing::warn!(%error, "no nftables monitor; the audit has to do"),
            }
        };
    }
}

fn notifications(change: Change) -> Vec<Notification> {
    match change {
        Change::Table { table, .. } if table == plan::TABLE => vec![Notification::OwnNft],
        Change::Table { .. } => vec![Notification::ForeignNft],
        Change::Lost => vec![Notification::OwnNft, Notification::ForeignNft],
    }
}
