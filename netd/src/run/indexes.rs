//! Which link was which of this program's devices, written down for the next run: somebody may rename one meanwhile.
//!
//! Invariant: what was written in another network namespace or before another boot says nothing here, because indexes are
//! given anew there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cluster::bounded;
use kernel::Rtnl;
use kernel::link::{LinkIndexes, Links, OwnsLink};
use netstate::IfName;

use super::files;

/// The links with these names, or that had them when an earlier run listed them.
pub(super) fn links(rtnl: Rtnl, owns: OwnsLink, names: BTreeSet<IfName>, run_dir: &Path) -> Links {
    let indexes = Indexes::in_folder(run_dir);
    let known = indexes.read().into_iter().filter(|(name, _)| names.contains(name)).collect();
    Links::new(rtnl, owns).only(names).known_as(known, move |now| indexes.write(now))
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
