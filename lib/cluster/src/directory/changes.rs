//! What inotify reports about a directory, gathered until it is quiet.
//!
//! Invariants: an overrun of the kernel's queue is a change, never a lost one; a file somebody is writing is
//! known as such from its first modification to its close; a file that was put aside in its own directory, as editors do
//! before they write the new text, is missed only when none has come for a while.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use tokio::time::{Instant, timeout_at};

use super::scanner::Hints;
use crate::manifest::Form;

/// A burst has ended when nothing happened for so long: an editor's write, chmod and rename are one change.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that does not end is acted on after so long; files still open for writing are left out.
const BURST: Duration = Duration::from_secs(1);
/// How long a file that was put aside still counts.
const ASIDE: Duration = Duration::from_secs(1);
/// How often the directory is read although nothing was reported.
pub(super) const AUDIT: Duration = Duration::from_secs(10);

/// Room for a good many events of the longest name (inotify(7): 16 bytes and up to 256 of name).
const BUFFER: usize = 16 * 1024;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something changed, or it is time to read the directory anyway.
    Change,
    /// The directory was removed, renamed or unmounted.
    Gone,
}

/// The notifications of one directory.
pub(super) struct Changes {
    stream: EventStream<Vec<u8>>,
    hints: Hints,
    /// A rename whose second half is awaited, by its number.
    renamed: Option<(u32, String)>,
    /// Files under another name that is no manifest's, with the end of their time.
    aside: BTreeMap<String, Instant>,
}

impl Changes {
    /// Asks for notifications; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the path is no directory, or the user's inotify watches or instances are used up.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(dir, mask)?;
        let stream = inotify.into_event_stream(vec![0; BUFFER])?;
        Ok(Self { stream, hints: Hints::default(), renamed: None, aside: BTreeMap::new() })
    }

    /// Waits for a change and then until it is quiet.
    ///
    /// # Errors
    /// When inotify ends or cannot be read.
    pub(super) async fn settled(&mut self) -> io::Result<Wake> {
        let audit = Instant::now() + AUDIT;
        let due = self.aside.values().copied().min().unwrap_or(audit).min(audit);
        let Ok(first) = timeout_at(due, self.stream.next()).await else { return Ok(Wake::Change) };
        let mut wake = self.note(first)?;
        let end = Instant::now() + BURST;
        while wake == Wake::Change {
            let quiet = end.min(Instant::now() + QUIET);
            match timeout_at(quiet, self.stream.next()).await {
                Ok(event) => wake = self.note(event)?,
                Err(_) => return Ok(Wake::Change),
            }
            if Instant::now() >= end {
                break;
            }
        }
        Ok(wake)
    }

    /// Which files changed since the last call, and which are being written now.
    pub(super) fn take_hints(&mut self) -> Hints {
        let now = Instant::now();
        self.aside.retain(|_, end| *end > now);
        Hints {
            changed: std::mem::take(&mut self.hints.changed),
            writing: self.hints.writing.clone(),
            aside: self.aside.keys().cloned().collect(),
        }
    }

    fn note(&mut self, event: Option<io::Result<EventOwned>>) -> io::Result<Wake> {
        let event = event.ok_or_else(|| io::Error::other("inotify ended"))??;
        let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED;
        if event.mask.intersects(gone) {
            return Ok(Wake::Gone);
        }
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            // Which files were closed is not known any more; the stamps show which have changed.
            self.hints.writing.clear();
        }
        if let Some(name) = event.name {
            let name = name.to_string_lossy().into_owned();
            self.note_rename(event.mask, event.cookie, &name);
            if event.mask.contains(EventMask::MODIFY) {
                self.hints.writing.insert(name);
            } else if !event.mask.intersects(EventMask::ATTRIB | EventMask::CREATE) {
                self.hints.writing.remove(&name);
                self.hints.changed.insert(name);
            }
        }
        Ok(Wake::Change)
    }

    /// A rename within the directory is two events with one number, the old name first.
    fn note_rename(&mut self, mask: EventMask, number: u32, name: &str) {
        if mask.contains(EventMask::MOVED_FROM) {
            self.renamed = Some((number, name.to_owned()));
            return;
        }
        if mask.intersects(EventMask::MOVED_TO | EventMask::CLOSE_WRITE) {
            self.aside.remove(name);
        }
        if mask.contains(EventMask::MOVED_TO)
            && Form::of(name).is_none()
            && let Some((_, old)) = self.renamed.take_if(|(of, _)| *of == number)
        {
            self.aside.insert(old, Instant::now() + ASIDE);
        }
    }
}
