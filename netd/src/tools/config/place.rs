//! Where a net-conf is kept, for reading and for changing what was read.
//!
//! Invariant: a text is replaced only as long as it is the one that was read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cluster::etcd::{self, Creation, Hold, Replacement};

use crate::command::config::Store;
use daemon::files;

/// Where a net-conf is kept.
pub(super) enum Place {
    /// In etcd, for the whole cluster.
    Etcd {
        /// Reaches it.
        store: etcd::Store,
        /// The network's folder.
        prefix: etcd::Prefix,
    },
    /// In a file, for this machine.
    File(PathBuf),
}

/// A text as it was read.
pub(super) struct Stored {
    /// The text.
    pub(super) text: String,
    /// Revision of the key's last change; 0 for a file.
    revision: i64,
}

impl Place {
    pub(super) fn of(store: &Store) -> Self {
        match store {
            Store::Etcd { client, prefix, .. } => {
                Self::Etcd { store: etcd::Store::new(client.clone()), prefix: prefix.clone() }
            }
            Store::Kubernetes { settings, .. } => Self::File(settings.net_conf.clone()),
            Store::Local { net_conf } => Self::File(net_conf.clone()),
        }
    }

    /// Its name, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Etcd { prefix, .. } => format!("etcd key {}", prefix.key("config")),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// The text that stands there; `None` when nobody has written one.
    ///
    /// # Errors
    /// When the store cannot be asked or holds no text.
    pub(super) async fn read(&self) -> Result<Option<Stored>> {
        match self {
            Self::Etcd { store, prefix } => {
                let Some(entry) = store.get(&prefix.key("config")).await? else { return Ok(None) };
                let text = String::from_utf8(entry.value).with_context(|| format!("{} holds no text", self.name()))?;
                Ok(Some(Stored { text, revision: entry.mod_revision }))
            }
            Self::File(path) => Ok(read_file(path)?.map(|text| Stored { text, revision: 0 })),
        }
    }

    /// Puts `text` in the place of what was read.
    ///
    /// # Errors
    /// When that has changed meanwhile, or cannot be written.
    pub(super) async fn replace(&self, before: Option<&Stored>, text: &str) -> Result<()> {
        let changed = || format!("{} was changed by somebody else meanwhile: nothing is written", self.name());
        match (self, before) {
            (Self::Etcd { store, prefix }, None) => {
                let created = store.create(&prefix.key("config"), text.as_bytes(), Hold::Forever).await?;
                if matches!(created, Creation::Exists(_)) {
                    bail!(changed());
                }
            }
            (Self::Etcd { store, prefix }, Some(stored)) => {
                let (key, revision) = (prefix.key("config"), stored.revision);
                let replaced = store.replace_if(&key, text.as_bytes(), Hold::Forever, revision).await?;
                if matches!(replaced, Replacement::Changed(_)) {
                    bail!(changed());
                }
            }
            (Self::File(path), before) => {
                if read_file(path)?.as_deref() != before.map(|stored| stored.text.as_str()) {
                    bail!(changed());
                }
                files::replace_kept(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path) -> Result<Option<String>> {
    match bounded::read_text(path, bounded::SETTINGS) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
