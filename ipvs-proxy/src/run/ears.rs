//! The listening half of the daemon, on tokio: the source, the kernel's notifications, signals.
//!
//! Invariant: it only passes on. Everything that is known or decided is on the other thread, so nothing is shared.

use std::sync::mpsc::Sender;

use kernel::nft::{Change, Stream};
use kernel::watch::{Event, Watch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::addresses::Ports;
use super::proxy::Update;
use super::tables::Touched;
use crate::dataplane::table as nft;
use crate::source::{Place, Source};

/// Why listening ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// SIGTERM or SIGINT.
    Asked,
    /// The working thread is gone.
    Alone,
}

/// Listens until a signal asks to end, or `working` says that nobody works any more.
///
/// # Errors
/// When the kernel refuses a monitor or the process a signal.
pub(super) async fn listen(
    place: Place,
    seed: u64,
    ports: Ports,
    updates: Sender<Update>,
    mut working: oneshot::Receiver<()>,
) -> anyhow::Result<Ended> {
    let mut links = Watch::open(ports.rtnl)?;
    let mut rules = Stream::open(ports.nft)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut source = Source::listen(&place, seed);
    loop {
        let update = tokio::select! {
            _ = terminate.recv() => return Ok(Ended::Asked),
            _ = interrupt.recv() => return Ok(Ended::Asked),
            _ = &mut working => return Ok(Ended::Alone),
            event = source.next() => match event {
                Some(event) => Some(Update::Cluster(event)),
                None => return Ok(Ended::Alone),
            },
            event = links.next() => match event {
                Some(event) => is_ours(event).then_some(Update::Kernel(Touched::Links)),
                None => anyhow::bail!("the monitor of links and addresses has ended"),
            },
            changes = rules.next() => changes?.iter().any(is_our_table).then_some(Update::Kernel(Touched::Nft)),
        };
        if let Some(update) = update
            && updates.send(update).is_err()
        {
            return Ok(Ended::Alone);
        }
    }
}

const fn is_ours(event: Event) -> bool {
    matches!(event, Event::Link | Event::Address | Event::Resync)
}

fn is_our_table(change: &Change) -> bool {
    match change {
        Change::Table { table, .. } => *table == nft::table_key(),
        Change::Lost => true,
    }
}
