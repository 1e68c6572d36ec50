//! What the server shows.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::own::{Answer as Answered, Asked, OwnPages};
use super::{Address, Board, Routes};
use crate::json;
use crate::liveness::Liveness;
use crate::log::{Kind, Recent, RecentEntry};
use crate::metrics::{self, Metrics};
use crate::readiness::Readiness;
use crate::status::{Lines, TableRows};
use crate::worker::Busy;

/// How long a question for rows may wait for a pass to end.
const ROWS_LIMIT: Duration = Duration::from_secs(10);

/// Content type of text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// Content type of JSON.
const JSON: &str = "application/json";

/// Which question about its health is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: is it well?
    Health,
    /// `/livez`: should it be restarted?
    Live,
    /// `/readyz`: has it begun to do its work?
    Ready,
}

/// How the daemon is, for the program's words about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// The loops that make no progress, as `name: how`.
    pub stuck: Vec<String>,
    /// Every gate has opened.
    pub ready: bool,
    /// The gates that have not.
    pub awaited: Vec<String>,
    /// What the program says of itself.
    pub vitals: Vitals,
}

/// What a program says of itself, for its words about its health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// No new traffic is to come to this node.
    pub ineligible: bool,
    /// When each part of the program last did its work.
    pub updated: BTreeMap<&'static str, SystemTime>,
    /// Where it serves nobody, and why.
    pub unserved: Vec<Unserved>,
    /// Pages that only this program has, by path, beside the metrics.
    pub pages: BTreeMap<&'static str, &'static str>,
}

/// An address that cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// The address.
    pub address: Address,
    /// Which pages it would have.
    pub routes: Routes,
    /// What the system says.
    pub reason: String,
}

impl Vitals {
    /// Takes in whether `address` is served, or why not.
    pub(super) fn note(&mut self, address: &Address, routes: Routes, reason: Option<&str>) {
        self.unserved.retain(|unserved| unserved.address != *address);
        if let Some(reason) = reason {
            self.unserved.push(Unserved { address: address.clone(), routes, reason: reason.to_owned() });
        }
    }
}

impl Health {
    /// True when every loop makes progress.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.stuck.is_empty()
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// HTTP's status code.
    pub code: u16,
    /// Its form.
    pub content_type: &'static str,
    /// What it says.
    pub body: String,
    /// Further headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
}

impl Page {
    /// A text.
    pub fn text(code: u16, body: impl Into<String>) -> Self {
        Self { code, content_type: TEXT, body: body.into(), headers: Vec::new() }
    }

    /// A JSON text.
    pub fn json(code: u16, body: impl Into<String>) -> Self {
        Self { code, content_type: JSON, body: body.into(), headers: Vec::new() }
    }
}

/// Rows on their way from the thread that knows them.
type Answer = Pin<Box<dyn Future<Output = Result<Vec<TableRows>, Busy>> + Send>>;

/// Asks for desired and actual rows, with a limit of time.
pub type Tables = Box<dyn Fn(Duration) -> Answer + Send + Sync>;

/// What the server shows, and where it is from.
pub struct Site {
    /// Whether the daemon has begun to do its work.
    pub readiness: Readiness,
    /// Whether every loop makes progress.
    pub liveness: Liveness,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// The status.
    pub board: Board,
    /// The rows.
    pub tables: Tables,
    /// The program's words about its health.
    pub health: fn(Probe, &Health) -> Page,
    /// What the program says of itself.
    pub vitals: Arc<Mutex<Vitals>>,
    /// Pages that only this program has.
    pub own: OwnPages,
    /// The last lines of the log.
    pub recent: Recent,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

impl Site {
    /// What `path` shows, with `query` behind the question mark; `None` when there is no such page. Without `all` there are
    /// only the pages about health.
    pub(super) async fn page(&self, path: &str, query: &str, all: bool) -> Option<Page> {
        let probe = match path {
            "/healthz" => Some(Probe::Health),
            "/livez" => Some(Probe::Live),
            "/readyz" => Some(Probe::Ready),
            _ => None,
        };
        if let Some(probe) = probe {
            let page = (self.health)(probe, &self.state());
            if !all {
                self.metrics.probe(probe, page.code);
            }
            return Some(page);
        }
        if !all {
            return None;
        }
        let json = query.split('&').any(|pair| pair == "format=json");
        match path {
            "/metrics" => {
                Some(Page { content_type: metrics::CONTENT_TYPE, ..Page::text(200, self.metrics.page().await) })
            }
            "/status" if json => Some(json_of(&self.board.whole().await)),
            "/status" => Some(Page::text(200, self.board.text().await)),
            "/tables" => Some(self.rows(json).await),
            "/changes" => Some(self.changes(json)),
            _ => self.vitals().pages.get(path).map(|text| Page::text(200, *text)),
        }
    }

    /// True when `path` says more than whether the daemon is well, and what nobody may read without its operator.
    pub(super) fn is_guarded(&self, path: &str) -> bool {
        ["/status", "/tables", "/changes"].contains(&path) || self.own.provider(path).is_some()
    }

    /// What only this program has at `path`.
    pub(super) async fn own(&self, path: &str, asked: Asked) -> Option<Answered> {
        let provider = self.own.provider(path)?;
        Some(provider(asked).await)
    }

    fn changes(&self, json: bool) -> Page {
        let entries = self.recent.entries();
        if json {
            let text = serde_json::json!(entries).to_string();
            return Page::json(200, format!("{}\n", json::escaped(&text)));
        }
        let mut lines = Lines::new();
        for RecentEntry { number, at, kind, text } in entries {
            let kind = match kind {
                Kind::Change => "change",
                Kind::Repair => "repair",
                Kind::Warning => "warning",
            };
            lines.push(format_args!("{number:>6} {at} {kind:<8} {text}"));
        }
        Page::text(200, lines.into_text())
    }

    fn state(&self) -> Health {
        let awaited = self.readiness.awaited();
        let stuck = self.liveness.stuck().iter().map(ToString::to_string).collect();
        Health { stuck, ready: awaited.is_empty(), awaited, vitals: self.vitals().clone() }
    }

    fn vitals(&self) -> MutexGuard<'_, Vitals> {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn rows(&self, json: bool) -> Page {
        let tables = match (self.tables)(ROWS_LIMIT).await {
            Ok(tables) => tables,
            Err(busy) => return Page::text(503, format!("{busy}\n")),
        };
        if json {
            return json_of(&tables);
        }
        let mut lines = Lines::new();
        tables.iter().for_each(|table| table.write(&mut lines));
        Page::text(200, lines.into_text())
    }
}

fn json_of(value: &impl Serialize) -> Page {
    match json::pretty(value) {
        Ok(text) => Page::json(200, text),
        Err(error) => Page::text(500, format!("{error}\n")),
    }
}
