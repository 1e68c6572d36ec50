//! A watched directory of Kubernetes manifests: Services without an API server.
//!
//! Keys are `<kind>/<namespace>/<name>`, values the objects as JSON ([`crate::manifest`]). The kernel tells when
//! something changes (inotify(7)); a slow audit looks anyway, because a replaced mount or a switched link says
//! nothing.
//!
//! Invariants: a file is read after its writer has closed it or renamed it into place, never half-way; a
//! malformed file is reported and keeps its last good objects while the others go on; a directory that
//! disappears removes nothing, and is listed anew when it is back. A file that is malformed from the start has
//! no good objects to keep: its [`Event::Invalid`] comes before the first [`Event::Complete`], so that a
//! consumer can hold back removals.

mod changes;
mod scanner;
mod shelf;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use self::changes::{Changes, Heard};
use self::scanner::{Hints, Scanner};
use self::shelf::{Readings, Shelf};
use crate::{Backoff, Class, ClusterError, Event, Source};

/// Longest pause between two looks for a directory that is not there.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// Watches the `.yaml`, `.yml` and `.json` files of `dir` (not of its subdirectories). A missing directory is
/// reported and waited for. Must be called inside a tokio runtime.
#[must_use]
pub fn watch(dir: &Path, seed: u64) -> Source {
    let dir = dir.to_path_buf();
    Source::spawn(move |events| {
        let watch = Watch { dir, events, backoff: Backoff::new(seed), shelf: Shelf::default(), lost: None };
        watch.run()
    })
}

/// Why a session with the directory ended.
enum Ended {
    /// The consumer is gone.
    Unheard,
    /// Another directory stands under the path now.
    Replaced,
    /// Trouble; try again after a pause.
    Broken(ClusterError),
}

struct Watch {
    dir: PathBuf,
    events: mpsc::Sender<Event>,
    backoff: Backoff,
    shelf: Shelf,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
}

impl Watch {
    async fn run(mut self) {
        loop {
            match self.session().await {
                Ended::Unheard => return,
                Ended::Replaced => {}
                Ended::Broken(error) => {
                    if self.report(error).await.is_err() {
                        return;
                    }
                    sleep(self.backoff.next_delay().min(LOOK_FOR)).await;
                }
            }
        }
    }

    async fn session(&mut self) -> Ended {
        match self.follow().await {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    /// One directory from its first listing to its end.
    async fn follow(&mut self) -> Result<std::convert::Infallible, Ended> {
        // Watched before it is listed: what changes in between is heard.
        let mut changes = Changes::of(&self.dir).map_err(|error| self.broken(&error))?;
        let identity = self.identity()?;
        let mut scanner = Scanner::new(&self.dir);
        let readings = self.scan(&mut scanner, Hints::default()).await?;
        let listing = self.shelf.listing(readings);
        self.tell(listing).await?;
        self.lost = None;
        self.backoff.reset();
        loop {
            let heard = changes.settled().await.map_err(|error| self.broken(&error))?;
            if heard == Heard::Gone || self.identity()? != identity {
                return Err(Ended::Replaced);
            }
            let readings = self.scan(&mut scanner, changes.take_hints()).await?;
            let told = self.shelf.changes(readings);
            self.tell(told).await?;
        }
    }

    async fn scan(&self, scanner: &mut Scanner, hints: Hints) -> Result<Readings, Ended> {
        let mut working = std::mem::replace(scanner, Scanner::new(&self.dir));
        let done = tokio::task::spawn_blocking(move || {
            let readings = working.scan(&hints);
            (working, readings)
        });
        let (working, readings) = done.await.map_err(|error| self.broken(&io::Error::other(error)))?;
        *scanner = working;
        readings.map_err(|error| self.broken(&error))
    }

    /// Device and inode.
    fn identity(&self) -> Result<(u64, u64), Ended> {
        let metadata = std::fs::metadata(&self.dir).map_err(|error| self.broken(&error))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    async fn tell(&self, events: Vec<Event>) -> Result<(), Ended> {
        for event in events {
            self.events.send(event).await.map_err(|_| Ended::Unheard)?;
        }
        Ok(())
    }

    /// Tells the consumer of trouble it does not know of yet.
    async fn report(&mut self, error: ClusterError) -> Result<(), Ended> {
        if self.lost.as_ref() == Some(&error) {
            return Ok(());
        }
        self.lost = Some(error.clone());
        self.tell(vec![Event::Lost(error)]).await
    }

    fn broken(&self, error: &io::Error) -> Ended {
        let place = self.dir.display().to_string();
        Ended::Broken(ClusterError::new("watch", "manifests", place, error.to_string(), Class::Retry))
    }
}
