//! Which link was which of this program's devices, written down for the next run: somebody may rename one meanwhile.
//!
//! Invariants: what was written in another network namespace or before another boot says nothing here, because indexes are
//! given anew there. What could not be written is written soon: links are listed again for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kernel::Rtnl;
use kernel::link::{LinkIndexes, Links, OwnsLink};
use netstate::IfName;

use daemon::files;

/// The links with these names, or that had them when an earlier run listed them; and whether that could be written down.
pub(super) fn links(rtnl: Rtnl, owns: OwnsLink, names: BTreeSet<IfName>, run_dir: &Path) -> (Links, Unwritten) {
    let (indexes, unwritten) = (Indexes::in_folder(run_dir), Unwritten::default());
    let known = indexes.read().into_iter().filter(|(name, _)| names.contains(name)).collect();
    let failed = Arc::clone(&unwritten.failed);
    let write = move |now: &LinkIndexes| {
        let is_written = indexes.write(now);
        failed.store(!is_written, Ordering::Relaxed);
        is_written
    };
    (Links::new(rtnl, owns).only(names).known_as(known, write), unwritten)
}

/// What could not be written is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// Whether the file has to be written again, and when: at the next listing of the links.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    failed: Arc<AtomicBool>,
    at: Option<Duration>,
}

impl Unwritten {
    /// True when the links are to be listed again at `now`.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// A pass has ended at `now`, which may have listed them.
    pub(super) fn note(&mut self, now: Duration) {
        match self.failed.load(Ordering::Relaxed) {
            true => drop(self.at.get_or_insert(now + AGAIN)),
            false => self.at = None,
        }
    }

    /// When they are listed again, if they are.
    pub(super) const fn next(&self) -> Option<Duration> {
        self.at
    }
}

/// File in the run-time folder: the place, then one `NAME INDEX` a line.
pub(super) const INDEXES: &str = "indexes";

/// The file and the place in which this daemon runs.
#[derive(Debug, Clone)]
struct Indexes {
    file: PathBuf,
    /// Boot and network namespace.
    place: String,
}

impl Indexes {
    fn in_folder(folder: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/net").unwrap_or_default();
        Self { file: folder.join(INDEXES), place: format!("{} {}", boot.trim(), namespace.display()) }
    }

    /// What was written here; nothing when that cannot be read or is of another place.
    fn read(&self) -> LinkIndexes {
        known_in(&bounded::read_text(&self.file, bounded::SETTINGS).unwrap_or_default(), &self.place)
    }

    /// Writes down what the next run should know. Returns whether that is in the file.
    fn write(&self, indexes: &LinkIndexes) -> bool {
        let lines: String = indexes.iter().map(|(name, index)| format!("{name} {index}\n")).collect();
        let written = files::replace(&self.file, format!("{}\n{lines}", self.place).as_bytes());
        if let Err(error) = &written {
            tracing::warn!(file = %self.file.display(), %error, "a device that is renamed while netd does not run will not be recognised");
        }
        written.is_ok()
    }
}

/// The indexes in the file `text`, if it was written in `place`.
fn known_in(text: &str, place: &str) -> LinkIndexes {
    let mut lines = text.lines();
    if lines.next() != Some(place) {
        return LinkIndexes::new();
    }
    let entry = |line: &str| {
        let (name, index) = line.split_once(' ')?;
        Some((name.parse().ok()?, index.parse().ok()?))
    };
    lines.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_count_in_the_place_where_they_were_written() {
        let text = "boot-1 net:[4026531840]\nflannel.1 7\njunk\nflannel-wg nine\nflannel.ipip 12\n";
        let read = known_in(text, "boot-1 net:[4026531840]");
        let shown: Vec<String> = read.iter().map(|(name, index)| format!("{name} {index}")).collect();
        assert_eq!(shown, ["flannel.1 7", "flannel.ipip 12"]);
        for elsewhere in ["boot-2 net:[4026531840]", "boot-1 net:[4026532000]", ""] {
            assert!(known_in(text, elsewhere).is_empty(), "{elsewhere}");
        }
    }

    #[test]
    fn what_could_not_be_written_is_tried_again_until_it_is() {
        let (mut unwritten, second) = (Unwritten::default(), Duration::from_secs);
        unwritten.note(second(1));
        assert_eq!(unwritten.next(), None);
        unwritten.failed.store(true, Ordering::Relaxed);
        unwritten.note(second(1));
        unwritten.note(second(2));
        assert_eq!((unwritten.next(), unwritten.is_due(second(2))), (Some(second(3)), false));
        assert!(unwritten.is_due(second(3)) && !unwritten.is_due(second(3)));
        unwritten.note(second(4));
        assert_eq!(unwritten.next(), Some(second(6)));
        unwritten.failed.store(false, Ordering::Relaxed);
        unwritten.note(second(6));
        assert_eq!(unwritten.next(), None);
    }

    #[test]
    fn what_was_written_is_read_by_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let indexes = Indexes::in_folder(folder.path());
        assert!(indexes.read().is_empty());
        let known = LinkIndexes::from([("flannel-wg".parse().unwrap(), 9)]);
        assert!(indexes.write(&known));
        assert_eq!(Indexes::in_folder(folder.path()).read(), known);
        assert!(!Indexes::in_folder(&folder.path().join(INDEXES)).write(&known), "a file is no folder");
    }
}
