//! A watched directory of Kubernetes manifests: Services without an API server.
//!
//! Keys are `<kind>/<namespace>/<name>`, or `<kind>/<name>`, values the objects as JSON ([`crate::manifest`]). The kernel reports when
//! something changes (inotify(7)); a slow audit reads the directory anyway, because a replaced mount or a switched link
//! is not reported.
//!
//! Invariants: a file is read after its writer has closed it or renamed it into place, never half-way; a
//! malformed file is reported and keeps its last good objects while the others go on; objects of other kinds are noted
//! and are no fault; a directory that disappears removes nothing, and is listed anew when it is back. What was written in
//! one go ends with one [`Event::Commit`]. A file that is malformed from the start has no good objects to keep: its
//! [`Event::Invalid`] comes before the first [`Event::Complete`], so that a consumer can hold back removals.

mod changes;
mod files;
mod scanner;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use self::changes::{AUDIT, Changes, Wake};
use self::files::{Files, Readings};
use self::scanner::{Hints, Scanner};
use crate::heartbeat::Heartbeat;
use crate::manifest::Kind;
use crate::{Backoff, Class, ClusterError, Event, Source};

/// Longest pause between two attempts at a directory that is not there.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Watches the objects of `kinds` in the `.yaml`, `.yml` and `.json` files of `dir` (not of its subdirectories). A missing
/// directory is reported and waited for. Must be called inside a tokio runtime.
#[must_use]
pub fn watch(dir: &Path, kinds: &'static [Kind], seed: u64) -> Source {
    let dir = dir.to_path_buf();
    Source::spawn(move |events, heartbeat| {
        let (backoff, files) = (Backoff::new(seed), Files::default());
        Watch { dir, kinds, events, heartbeat, backoff, files, lost: None }.run()
    })
}

/// Why a session with the directory ended.
enum Ended {
    /// The consumer is gone.
    Closed,
    /// Another directory stands under the path now.
    Replaced,
    /// Trouble; try again after a pause.
    Broken(ClusterError),
}

struct Watch {
    dir: PathBuf,
    kinds: &'static [Kind],
    events: mpsc::Sender<Event>,
    heartbeat: Heartbeat,
    backoff: Backoff,
    files: Files,
    /// The trouble the consumer knows of.
    lost: Option<ClusterError>,
}

impl Watch {
    async fn run(mut self) {
        loop {
            match self.session().await {
                Ended::Closed => return,
                Ended::Replaced => {}
                Ended::Broken(error) => {
                    if self.report(error).await.is_err() {
                        return;
                    }
                    let pause = self.backoff.next_delay().min(LONGEST_PAUSE);
                    self.heartbeat.back_within(pause);
                    sleep(pause).await;
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
        self.heartbeat.busy();
        // Watched before it is listed: what changes in between is reported.
        let mut changes = Changes::of(&self.dir).map_err(|error| self.broken(&error))?;
        let identity = self.identity()?;
        let mut scanner = Scanner::new(&self.dir, self.kinds);
        let readings = self.scan(&mut scanner, Hints::default()).await?;
        let listing = self.files.listing(readings);
        self.send(listing).await?;
        self.lost = None;
        self.backoff.reset();
        loop {
            self.heartbeat.back_within(AUDIT);
            let wake = changes.settled().await.map_err(|error| self.broken(&error))?;
            if wake == Wake::Gone || self.identity()? != identity {
                return Err(Ended::Replaced);
            }
            self.heartbeat.busy();
            let readings = self.scan(&mut scanner, changes.take_hints()).await?;
            let changed = self.files.changes(readings);
            self.send(changed).await?;
        }
    }

    async fn scan(&self, scanner: &mut Scanner, hints: Hints) -> Result<Readings, Ended> {
        let mut working = std::mem::replace(scanner, Scanner::new(&self.dir, self.kinds));
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

    async fn send(&self, events: Vec<Event>) -> Result<(), Ended> {
        for event in events {
            self.events.send(event).await.map_err(|_| Ended::Closed)?;
        }
        Ok(())
    }

    /// Reports trouble that the consumer does not know of yet.
    async fn report(&mut self, error: ClusterError) -> Result<(), Ended> {
        if self.lost.as_ref() == Some(&error) {
            return Ok(());
        }
        self.lost = Some(error.clone());
        self.send(vec![Event::Lost(error)]).await
    }

    fn broken(&self, error: &io::Error) -> Ended {
        let place = self.dir.display().to_string();
        Ended::Broken(ClusterError::new("watch", "manifests", place, error.to_string(), Class::Retry))
    }
}
