//! Everything that exists now: as the beginning of a watch where the server has that (WatchList), in pages otherwise.
//!
//! Invariants: a listing is consistent: it shows what was true when it was asked for, never what some cache holds from before; of its
//! text no more is kept than one object, or one page of a few MiB; `Reset` is sent when the server has begun to answer, and what is known
//! stays until `Complete`.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::client::Query;
use super::fault::Fault;
use super::follow::Stream;
use super::lines::Lines;
use super::object::{Message, Page, Raw, number};
use super::watch::{Ended, Watch};
use crate::{Event, Origin};

/// Limit of one page.
const PAGE: Duration = Duration::from_secs(60);

/// Longest silence inside a streaming list.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// Objects of the first page, of the smallest and of the largest.
const FIRST: usize = 100;
const FEWEST: usize = 10;
const MOST: usize = 500;

/// Bytes that a page should have.
const BYTES: usize = 2 << 20;

/// The first minor version of Kubernetes 1 whose servers know `sendInitialEvents`; earlier ones read over it, or not.
const STREAMING: u32 = 27;

/// How the server lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It was not asked.
    Unknown,
    /// As the beginning of a watch.
    Streaming,
    /// In pages.
    Pages,
}

/// Where a listing ended.
pub(super) struct Listed {
    pub(super) revision: String,
    /// The stream that goes on behind a streaming list.
    pub(super) stream: Option<Stream>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    major: String,
    #[serde(default)]
    minor: String,
}

/// Whether a server of this version may list by streaming; one that does not say its version may.
fn may_stream(version: &Version) -> bool {
    // `20+` and the like are minor versions too.
    let digits: String = version.minor.chars().take_while(char::is_ascii_digit).collect();
    version.major != "1" || digits.parse::<u32>().map_or(true, |minor| minor >= STREAMING)
}

impl<V: Send + 'static> Watch<V> {
    pub(super) async fn list(&mut self) -> Result<Listed, Ended> {
        self.heartbeat.busy();
        if self.way == Way::Unknown {
            self.way = self.way_of_server().await?;
        }
        if self.way == Way::Streaming
            && let Some(listed) = self.list_by_stream().await?
        {
            return Ok(listed);
        }
        self.list_by_pages().await
    }

    async fn way_of_server(&self) -> Result<Way, Ended> {
        match self.client.whole(Query::get("get", "/version", "/version"), SILENCE).await {
            Ok(body) => {
                let version =
                    serde_json::from_slice(&body).unwrap_or(Version { major: String::new(), minor: String::new() });
                Ok(if may_stream(&version) { Way::Streaming } else { Way::Pages })
            }
            // Who may not ask for the version can list all the same.
            Err(fault) if matches!(fault.error.status(), Some(401 | 403 | 404)) => Ok(Way::Streaming),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Lists by a stream; nothing when the server has no such listing, which is remembered.
    async fn list_by_stream(&mut self) -> Result<Option<Listed>, Ended> {
        let limit = self.life();
        let path = self.collection.path(&[
            ("watch", "true"),
            ("sendInitialEvents", "true"),
            ("resourceVersionMatch", "NotOlderThan"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &limit),
        ]);
        let mut left = self.client.left();
        let body = match self.client.send(Query::get("watch", &self.name, &path), SILENCE).await {
            Ok(response) => response.into_body(),
            Err(fault) if matches!(fault.error.status(), Some(400 | 422)) => {
                tracing::debug!(error = %fault.error, "no streaming lists here; pages instead");
                self.way = Way::Pages;
                return Ok(None);
            }
            Err(fault) => return Err(fault.into()),
        };
        self.send(Event::Reset).await?;
        let mut lines = Lines::new(body);
        loop {
            self.heartbeat.busy();
            let line = tokio::select! {
                biased;
                line = timeout(SILENCE, lines.next()) => line,
                _ = left.changed() => return Err(Ended::Expired),
            };
            let Ok(line) = line else {
                // A server that read over the parameters is at the end of what exists, and silent.
                self.way = Way::Pages;
                return Ok(self.without_end("the server is silent"));
            };
            let line = match line {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(self.without_end("it ended before it was whole")),
                Err(broken) => return Ok(self.without_end(&broken.to_string())),
            };
            self.client.note_answer();
            match Message::parse(line).map_err(|reason| self.broken("watch", reason))? {
                Message::Put(raw) => self.put(&raw).await?,
                Message::Delete(raw) => self.delete(raw).await?,
                Message::Bookmark { revision, ends_listing: true } => {
                    self.complete(&revision).await?;
                    return Ok(Some(Listed { revision, stream: Some(Stream::behind_list(lines, left)) }));
                }
                Message::Bookmark { .. } => {
                    // A server that reads over the parameters, and on which something happens all the time, is never silent. One that knows
                    // them sends no other bookmark before the list is whole.
                    self.way = Way::Pages;
                    return Ok(self.without_end("its first bookmark does not end it"));
                }
                Message::Error { message, .. } => return Ok(self.without_end(&message)),
            }
        }
    }

    /// A streaming list that the server cannot end now. As in client-go, pages are asked for this time: they may come all the same, or say
    /// what is wrong.
    fn without_end(&self, reason: &str) -> Option<Listed> {
        tracing::debug!(collection = self.name, reason, "the streaming list has no end; pages instead");
        None
    }

    async fn list_by_pages(&mut self) -> Result<Listed, Ended> {
        let (mut next, mut limit) = (String::new(), FIRST);
        loop {
            self.heartbeat.busy();
            let text = limit.to_string();
            let mut parameters = vec![("limit", text.as_str())];
            if !next.is_empty() {
                parameters.push(("continue", next.as_str()));
            }
            let path = self.collection.path(&parameters);
            let body = self.client.whole(Query::get("list", &self.name, &path), PAGE).await.map_err(of_page)?;
            let page = Page::parse(&body).map_err(|reason| self.broken("list", reason))?;
            if next.is_empty() {
                self.send(Event::Reset).await?;
            }
            for item in &page.items {
                match Raw::parse(item) {
                    Ok(raw) => self.put(&raw).await?,
                    Err(reason) => tracing::warn!(collection = self.name, reason, "left out of a listing"),
                }
            }
            if page.next.is_empty() {
                self.complete(&page.revision).await?;
                return Ok(Listed { revision: page.revision, stream: None });
            }
            limit = fitting(limit, body.len());
            next = page.next;
        }
    }

    async fn complete(&mut self, revision: &str) -> Result<(), Ended> {
        self.send(Event::Origin(Origin { revision: number(revision), ..Origin::default() })).await?;
        self.send(Event::Complete).await?;
        self.lost = None;
        Ok(())
    }
}

/// A listing whose next page is of a state that is no longer kept is begun anew.
fn of_page(fault: Fault) -> Ended {
    if fault.error.status() == Some(410) { Ended::Expired } else { fault.into() }
}

/// How many objects the next page should have, when a page of `limit` had these bytes.
fn fitting(limit: usize, bytes: usize) -> usize {
    let each = (bytes / limit.max(1)).max(1);
    (BYTES / each).clamp(FEWEST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_streaming_lists_are_known_by_their_version() {
        let may = |major: &str, minor: &str| may_stream(&Version { major: major.to_owned(), minor: minor.to_owned() });
        assert!(!may("1", "20") && !may("1", "26+") && !may("1", "16"));
        assert!(may("1", "27") && may("1", "36+") && may("2", "0") && may("1", "") && may("", ""));
    }

    #[test]
    fn pages_have_a_few_megabytes_whatever_the_size_of_the_objects() {
        assert_eq!(fitting(100, 100 * 1000), MOST);
        assert_eq!(fitting(100, 100 * 10_500), 199);
        assert_eq!(fitting(100, 100 * 1_000_000), FEWEST);
    }
}
