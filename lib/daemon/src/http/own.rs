//! Pages that one program has beside those of every daemon, and streams of events.
//!
//! Invariants: a provider is asked only when somebody asks for its path; a stream holds no more than [`WAITING`] events, whoever fills it
//! waits until its client has taken them, and ends when the client has gone.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
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
    pub fn open() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, frames) = mpsc::channel(WAITING);
        (sender, Self { frames })
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
