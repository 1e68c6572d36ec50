//! Pages that one program has beside those of every daemon, and streams of events.
//!
//! Invariants: a provider is asked only when somebody asks for its path; a stream holds no more than [`WAITING`] events, whoever fills it
//! waits until its client has taken them, and ends when the client has gone.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Page, Reach, query};
use crate::slot::locked;

/// Events of a stream that wait for their client.
const WAITING: usize = 2;

/// A question for a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What stands behind the question mark.
    pub query: String,
    /// From where it can come.
    pub reach: Reach,
}

impl Asked {
    /// The first value of `name` in the query, as it was typed, if it has one that is not empty.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        query::field(&self.query, name)
    }
}

/// What a provider says.
#[derive(Debug)]
pub enum Answer {
    /// A whole page.
    Page(Page),
    /// Server-sent events, as they come.
    Events(Events),
}

/// The client's end of a stream of events.
#[derive(Debug)]
pub struct Events {
    pub(super) frames: mpsc::Receiver<Bytes>,
}

impl Events {
    /// A stream, and the end that fills it.
    #[must_use]
    pub fn open() -> (EventSender, Self) {
        let (sender, frames) = mpsc::channel(WAITING);
        (EventSender(sender), Self { frames })
    }
}

/// The daemon's end of a stream of events.
#[derive(Debug)]
pub struct EventSender(mpsc::Sender<Bytes>);

impl EventSender {
    /// Sends an event of the kind `name`, once there is room for it. Returns false when there is nobody any more.
    pub async fn send(&self, name: &'static str, data: &Value) -> bool {
        // JSON has no line breaks of its own, so it is one line of data.
        self.0.send(Bytes::from(format!("event: {name}\ndata: {data}\n\n"))).await.is_ok()
    }

    /// Waits until there is nobody any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers questions for one page.
pub(super) type Provider = Arc<dyn Fn(Asked) -> Answering + Send + Sync>;

/// The pages by path; clones are the same.
#[derive(Clone, Default)]
pub struct OwnPages(Arc<Mutex<BTreeMap<&'static str, Provider>>>);

impl fmt::Debug for OwnPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(locked(&self.0).keys()).finish()
    }
}

impl OwnPages {
    /// Has `answer` say what is at `path` from now on.
    pub fn show<F>(&self, path: &'static str, answer: impl Fn(Asked) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let provider: Provider = Arc::new(move |asked| Box::pin(answer(asked)));
        locked(&self.0).insert(path, provider);
    }

    pub(super) fn provider(&self, path: &str) -> Option<Provider> {
        locked(&self.0).get(path).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_event_is_one_line_of_data_whatever_is_in_it() {
        let (sender, mut events) = Events::open();
        let data = json!({"text": "a\r\n\nevent: b\ndata: c\u{2028}"});
        assert!(sender.send("sections", &data).await);
        let text = String::from_utf8(events.frames.recv().await.unwrap().to_vec()).unwrap();
        let line = text.strip_prefix("event: sections\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!line.contains(['\n', '\r']), "{line}");
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), data);
        drop(events);
        sender.closed().await;
        assert!(!sender.send("sections", &data).await);
    }
}
