//! `Tree`: the files of a host by their paths, and its units in the order in which they start.
//!
//! Invariant: a path has one file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use host::manifest::Mode;
use host::{Ready, UnitEntry};

/// Where units lie that an administrator has: they come before those of packages.
const UNITS: &str = "/etc/systemd/system";

/// A file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its content.
    pub(crate) text: String,
    /// Its permissions.
    pub(crate) mode: Mode,
}

impl File {
    /// What everybody may read.
    pub(crate) fn public(text: impl Into<String>) -> Self {
        Self { text: text.into(), mode: Mode::PUBLIC }
    }

    /// A key, or what holds one.
    pub(crate) fn secret(text: impl Into<String>) -> Self {
        Self { text: text.into(), mode: Mode::SECRET }
    }
}

impl fmt::Debug for File {
    /// Without its text, which may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {}", self.text.len(), self.mode)
    }
}

/// What a host gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Its files by their paths on the host.
    pub(crate) files: BTreeMap<PathBuf, File>,
    /// Its units in the order in which they start.
    pub(crate) units: Vec<UnitEntry>,
}

impl Tree {
    /// Adds a file that everybody may read.
    pub(super) fn file(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.files.insert(path.into(), File::public(text));
    }

    /// Adds the unit `name` of the text `text`, which is started again when it or a file of `restart` changes.
    pub(super) fn unit(&mut self, name: &str, text: String, restart: &[&str], start: Start) {
        let path = format!("{UNITS}/{name}");
        let restart = std::iter::once(path.as_str()).chain(restart.iter().copied()).map(PathBuf::from).collect();
        self.file(path, text);
        self.started(name, restart, start);
    }

    /// Adds a unit that the system has already, which is started again when a file of `restart` changes.
    pub(super) fn started(&mut self, name: &str, restart: Vec<PathBuf>, start: Start) {
        let Start { ready, wait } = start;
        self.units.push(UnitEntry { name: name.to_owned(), restart, reload: Vec::new(), ready, wait });
    }
}

/// How a unit starts.
#[derive(Debug, Clone, Default)]
pub(super) struct Start {
    ready: Option<Ready>,
    wait: bool,
}

impl Start {
    /// It is waited for until the service manager calls it started.
    pub(super) fn waited() -> Self {
        Self { ready: None, wait: true }
    }

    /// It is waited for where whom it needs is there by then.
    pub(super) fn waited_if(is_there: bool) -> Self {
        if is_there { Self::waited() } else { Self::alone() }
    }

    /// Nobody waits for it.
    pub(super) fn alone() -> Self {
        Self::default()
    }

    /// The same, and it serves when `url` answers 200, under a certificate of `authority`, within `seconds`.
    pub(super) fn until(self, url: String, authority: Option<&str>, seconds: u32) -> Self {
        let ready = Ready { url, authority: authority.map(PathBuf::from), certificate: None, key: None, seconds };
        Self { ready: Some(ready), ..self }
    }
}
