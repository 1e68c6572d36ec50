//! The status file: what the daemon knows, what it does not serve and why, what the kernel refused.
//!
//! Invariant: the file is replaced whole, so a reader never sees half of it, and it is written only when it says something
//! new. Its fields are what `ipvs-proxy status` shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reconcile::{Stage, State};
use serde::{Deserialize, Serialize};

use super::proxy::Proxy;
use crate::dataplane::not_served as not_served_of;

/// Name of the file in the folder of run-time files.
pub(crate) const FILE: &str = "status.json";

/// Rows that are not in place, shown per table.
const SHOWN: usize = 20;

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// Version of this program.
    pub(crate) version: String,
    /// This node's name.
    pub(crate) node: String,
    /// Everything that is wanted is in the kernel and every source is in reach.
    pub(crate) ok: bool,
    /// What has not been listed yet; nothing is removed before it has.
    pub(crate) waiting_for: Vec<String>,
    /// Why the source is out of reach, if so.
    pub(crate) lost: Option<String>,
    /// Services that are known.
    pub(crate) services: usize,
    /// EndpointSlices that are known.
    pub(crate) endpoint_slices: usize,
    /// Objects that cannot be read or served, with the reason.
    pub(crate) refused: Vec<Refused>,
    /// Services that are served as the kernel remembers them, because nobody can read what they should be.
    pub(crate) remembered: Vec<String>,
    /// What Services ask for that is not served yet.
    pub(crate) not_served: Vec<NotServed>,
    /// The kernel's tables.
    pub(crate) tables: Vec<Table>,
    /// Endpoints that take no new connections and wait for their old ones to end.
    pub(crate) draining: Vec<String>,
    /// What the operator should know about this node.
    pub(crate) advice: Vec<String>,
    /// Work done since the start.
    pub(crate) totals: Totals,
}

/// An object that cannot be read or served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refused {
    /// Its key, or the file.
    pub(crate) object: String,
    /// Why.
    pub(crate) reason: String,
    /// An earlier version of it is served.
    pub(crate) earlier_version_served: bool,
}

/// A Service that asks for more than it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotServed {
    /// Its key.
    pub(crate) object: String,
    /// The fields, as `field: value`.
    pub(crate) fields: Vec<String>,
}

/// A kernel table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: String,
    /// Rows that are wanted.
    pub(crate) desired: usize,
    /// Of these, rows in place.
    pub(crate) done: usize,
    /// Some of the others, as `row: why`.
    pub(crate) open: Vec<String>,
    /// Why the table cannot be read, if so.
    pub(crate) error: Option<String>,
}

/// Work done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Listings of tables.
    pub(crate) observed: u64,
    /// Rows created or changed.
    pub(crate) upserted: u64,
    /// Rows removed.
    pub(crate) removed: u64,
    /// Steps and listings that failed.
    pub(crate) failed: u64,
}

impl Status {
    /// The status of `proxy` on `node`.
    #[must_use]
    pub(crate) fn of(proxy: &Proxy, node: &str, advice: &[String], now: Duration) -> Self {
        let tables: Vec<_> = proxy.tables().stack().stages().map(|stage| table(stage)).collect();
        let lost = proxy.view().lost().map(ToString::to_string);
        let waiting_for: Vec<_> = proxy.gate().waiting().map(ToString::to_string).collect();
        let done = tables.iter().all(|table| table.error.is_none() && table.open.is_empty());
        let totals = proxy.totals();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.to_owned(),
            ok: done && lost.is_none() && waiting_for.is_empty(),
            waiting_for,
            lost,
            services: proxy.view().services().count(),
            endpoint_slices: proxy.view().all_slices().count(),
            refused: refused(proxy),
            remembered: proxy.remembered().map(|name| format!("services/{name}")).collect(),
            not_served: not_served(proxy),
            tables,
            draining: proxy.tables().drains().remaining(now).map(|(server, _)| server.to_string()).collect(),
            advice: advice.to_vec(),
            totals: Totals {
                observed: totals.observed,
                upserted: totals.upserted,
                removed: totals.removed,
                failed: totals.failed,
            },
        }
    }

    /// Reads the file in `run_dir`.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub(crate) fn read(run_dir: &Path) -> io::Result<Self> {
        let text = fs::read(run_dir.join(FILE))?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }
}

fn table(stage: &dyn Stage) -> Table {
    let status = stage.status();
    let open = |row: &reconcile::Row| match &row.state {
        State::Failed { reason, .. } => format!("{}: {reason}", row.key),
        State::Pending | State::Done => format!("{}: pending", row.key),
    };
    Table {
        name: stage.name().to_owned(),
        desired: status.desired,
        done: status.done,
        open: status.open.iter().take(SHOWN).map(open).collect(),
        error: status.observe_error,
    }
}

fn refused(proxy: &Proxy) -> Vec<Refused> {
    let remembered: Vec<String> = proxy.remembered().map(|name| format!("services/{name}")).collect();
    let malformed = proxy.view().malformed().map(|(key, reason, kept)| Refused {
        object: key.to_owned(),
        reason: reason.to_owned(),
        earlier_version_served: kept || remembered.iter().any(|object| object == key),
    });
    let unreadable = proxy.view().unreadable().iter().map(|(source, reason)| Refused {
        object: source.clone(),
        reason: reason.clone(),
        earlier_version_served: false,
    });
    let misplaced = proxy.misplaced().iter().map(|(name, reason)| Refused {
        object: format!("services/{name}"),
        reason: reason.clone(),
        earlier_version_served: proxy.claims().serves(name),
    });
    let conflicts = proxy.claims().conflicts();
    let conflicts = conflicts.iter().map(|conflict| Refused {
        object: format!("services/{}", conflict.refused),
        reason: format!(
            "{} belongs to services/{}, which is older or comes first by name",
            conflict.key, conflict.served
        ),
        earlier_version_served: false,
    });
    malformed.chain(unreadable).chain(misplaced).chain(conflicts).collect()
}

fn not_served(proxy: &Proxy) -> Vec<NotServed> {
    let services =
        proxy.view().services().map(|service| (format!("services/{}", service.name), not_served_of(service)));
    let slices = proxy.view().all_slices();
    let slices = slices.map(|slice| (format!("endpointslices/{}", slice.name), slice.unserved.clone()));
    let asking = services.chain(slices).filter(|(_, fields)| !fields.is_empty());
    asking.map(|(object, fields)| NotServed { object, fields }).collect()
}

/// Writes the file when there is something new to say, at most twice a second.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
    written: Option<Status>,
    next: Duration,
    failed: bool,
}

/// Shortest time between two writes: the status of thousands of Services takes milliseconds to put together.
const PAUSE: Duration = Duration::from_millis(500);

impl StatusFile {
    /// A file in `run_dir`, which is made when it is not there.
    #[must_use]
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join(FILE), written: None, next: Duration::ZERO, failed: false }
    }

    /// Writes the status if it is time and says something new; returns false when it was not yet time. A file that cannot be
    /// written is reported once and stops nobody.
    pub(crate) fn update(&mut self, now: Duration, status: impl FnOnce() -> Status) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + PAUSE;
        let status = status();
        if self.written.as_ref() == Some(&status) {
            return true;
        }
        match self.write(&status) {
            Ok(()) => {
                self.failed = false;
                self.written = Some(status);
            }
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(path = %self.path.display(), %error, "status file cannot be written");
            }
            Err(_) => {}
        }
        true
    }

    fn write(&self, status: &Status) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
        let beside = self.path.with_extension("json.new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_only_by_news_and_reads_back_equal() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = StatusFile::new(&folder.path().join("run"));
        let status = Status { node: "n".to_owned(), ok: true, ..Status::default() };
        assert!(file.update(Duration::ZERO, || status.clone()));
        assert_eq!(Status::read(&folder.path().join("run")).unwrap(), status);
        fs::remove_file(folder.path().join("run").join(FILE)).unwrap();
        assert!(file.update(Duration::from_secs(1), || status.clone()));
        assert!(Status::read(&folder.path().join("run")).is_err(), "no news, no write");
        assert!(!file.update(Duration::from_millis(1100), || panic!("too soon")));
    }
}
