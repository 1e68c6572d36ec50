//! `Recent`: the last lines of the log, for whoever asks what has happened.
//!
//! Invariants: no more than [`KEPT`] lines of [`LENGTH`] bytes each are kept; they have what the log has at its normal detail, whatever its
//! detail is now, and so no secret.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::Fields;
use crate::slot::locked;

/// Lines that are kept.
pub const KEPT: usize = 100;

/// Bytes of a line.
const LENGTH: usize = 400;

/// Libraries of which the log has warnings only.
const LIBRARIES: [&str; 6] = ["netlink_proto", "h2", "hyper", "hyper_util", "tower", "rustls"];

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something is other than before.
    Change,
    /// What somebody else had changed was put right.
    Repair,
    /// An operator should look into it.
    Warning,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number since the start, from 1 on.
    pub number: u64,
    /// When, in seconds since 1970.
    pub at: u64,
    /// What it is about.
    pub kind: Kind,
    /// What it says, with its fields.
    pub text: String,
}

/// The last lines; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    entries: VecDeque<Entry>,
    count: u64,
}

impl Recent {
    /// What is kept, the newest last.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        locked(&self.0).entries.iter().cloned().collect()
    }

    /// How many lines there were since the start.
    #[must_use]
    pub fn count(&self) -> u64 {
        locked(&self.0).count
    }

    fn push(&self, kind: Kind, mut text: String) {
        if text.len() > LENGTH {
            let end = (0..=LENGTH).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
            text.truncate(end);
            text.push('…');
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut inside = locked(&self.0);
        inside.count = inside.count.saturating_add(1);
        let number = inside.count;
        if inside.entries.len() >= KEPT {
            inside.entries.pop_front();
        }
        inside.entries.push_back(Entry { number, at, kind, text });
    }

    /// What puts lines in.
    pub(crate) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> impl Layer<S> {
        Lines(self.clone()).with_filter(filter_fn(is_kept).with_max_level_hint(LevelFilter::INFO))
    }
}

/// True for what the log has at its normal detail.
fn is_kept(meta: &Metadata<'_>) -> bool {
    let library = meta.target().split("::").next().unwrap_or_default();
    let most = if LIBRARIES.contains(&library) { Level::WARN } else { Level::INFO };
    *meta.level() <= most
}

/// Puts events in.
struct Lines(Recent);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let repairs = fields.others.get("cause").and_then(Value::as_str) == Some("change");
        let kind = match *event.metadata().level() {
            Level::WARN | Level::ERROR => Kind::Warning,
            _ if repairs => Kind::Repair,
            _ => Kind::Change,
        };
        self.0.push(kind, text(&fields));
    }
}

/// The message, its error behind a colon and its fields in brackets.
fn text(fields: &Fields) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut text = fields.message.clone();
    if let Some(error) = &fields.error {
        text.push_str(": ");
        text.push_str(&word(error));
    }
    let others: Vec<String> = fields.others.iter().map(|(name, value)| format!("{name} {}", word(value))).collect();
    if !others.is_empty() {
        text.push_str(&format!(" ({})", others.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn logged(log: impl FnOnce()) -> Vec<Entry> {
        let recent = Recent::default();
        tracing::subscriber::with_default(Registry::default().with(recent.layer()), log);
        recent.entries()
    }

    #[test]
    fn lines_are_kept_with_their_fields_and_what_they_are_about() {
        let entries = logged(|| {
            tracing::info!(subnet = "172.7.22.0/24", "another node has come");
            tracing::info!(cause = "change", set = 1, "kernel tables changed");
            tracing::warn!(error = %"no route", "etcd cannot be reached");
            tracing::debug!("detail");
            tracing::info!(target: "netlink_proto::connection", "library");
        });
        let texts: Vec<_> = entries.iter().map(|entry| (entry.number, entry.kind, entry.text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (1, Kind::Change, "another node has come (subnet 172.7.22.0/24)"),
                (2, Kind::Repair, "kernel tables changed (cause change, set 1)"),
                (3, Kind::Warning, "etcd cannot be reached: no route"),
            ]
        );
        assert!(entries.iter().all(|entry| entry.at > 1_700_000_000));
    }

    #[test]
    fn lines_are_bounded_in_number_and_length() {
        let entries = logged(|| {
            for number in 0..KEPT + 7 {
                tracing::info!("{number} {}", "ü".repeat(LENGTH));
            }
        });
        assert_eq!((entries.len(), entries[0].number), (KEPT, 8));
        assert!(entries.iter().all(|entry| entry.text.len() <= LENGTH + "…".len() && entry.text.ends_with("ü…")));
    }
}
