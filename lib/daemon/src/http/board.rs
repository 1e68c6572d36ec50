//! `Board`: the newest status, for the file and for whoever asks.
//!
//! Invariant: what is put up is small, because it is put up after every change and written into the file; what grows with
//! the cluster is rendered only for those who ask for it ([`Board::details`]).

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::liveness::Liveness;
use crate::status::File;

/// How long the daemon may take for its details; then the status is shown without.
const DETAILS_LIMIT: Duration = Duration::from_secs(5);

/// Longest time for writing the status file.
const WRITING: Duration = Duration::from_secs(30);

/// Questions for details that wait.
const QUESTIONS: usize = 16;

/// Somebody waits for the details of the status: fields to be added to it.
pub type Question = oneshot::Sender<Map<String, Value>>;

/// The newest status; clones are the same board.
#[derive(Clone)]
pub struct Board {
    shared: Arc<Shared>,
}

struct Shared {
    status: Mutex<Value>,
    changed: Notify,
    /// How many were put up, for those who wait for the next.
    count: watch::Sender<u64>,
    render: fn(&Value) -> String,
    details: Mutex<Option<mpsc::Sender<Question>>>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Board {
    /// An empty board; `render` makes the text for a terminal of a status.
    #[must_use]
    pub fn new(render: fn(&Value) -> String) -> Self {
        let (status, changed, details) = (Mutex::new(Value::Null), Notify::new(), Mutex::new(None));
        Self { shared: Arc::new(Shared { status, changed, count: watch::Sender::new(0), render, details }) }
    }

    /// Puts `status` up.
    pub fn set(&self, status: &impl Serialize) {
        match serde_json::to_value(status) {
            Ok(status) => {
                *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
                self.shared.changed.notify_one();
                self.shared.count.send_modify(|count| *count = count.wrapping_add(1));
            }
            Err(error) => tracing::error!(%error, "the status cannot be written as JSON"),
        }
    }

    /// How many were put up, which changes with each.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.count.subscribe()
    }

    /// The questions for details from now on, each to be answered by the one who calls this.
    #[must_use]
    pub fn details(&self) -> mpsc::Receiver<Question> {
        let (ask, questions) = mpsc::channel(QUESTIONS);
        *self.shared.details.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
        questions
    }

    /// The newest status without details; null before the first.
    #[must_use]
    pub fn value(&self) -> Value {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest status with the details that the daemon adds now; null before the first.
    pub async fn whole(&self) -> Value {
        let mut status = self.value();
        if let Value::Object(fields) = &mut status
            && let Ok(Some(details)) = tokio::time::timeout(DETAILS_LIMIT, self.ask()).await
        {
            fields.extend(details);
        }
        status
    }

    async fn ask(&self) -> Option<Map<String, Value>> {
        let details = self.shared.details.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (question, answer) = oneshot::channel();
        details.send(question).await.ok()?;
        answer.await.ok()
    }

    /// The whole status for a terminal.
    pub async fn text(&self) -> String {
        (self.shared.render)(&self.whole().await)
    }

    /// Writes what is put up into the status file of `folder`, for as long as the future is polled. The heartbeat stops
    /// while `liveness` says stuck.
    pub async fn write_to(self, folder: &Path, liveness: Liveness) {
        let start = Instant::now();
        let heartbeat = liveness.heartbeat("status file", WRITING);
        let mut file = File::new(folder, liveness);
        loop {
            let left = file.next().saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            heartbeat.back_within(left);
            tokio::select! {
                () = self.shared.changed.notified() => file.set(self.value()),
                () = tokio::time::sleep(left) => file.write(start.elapsed()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::status::{State, Stored};

    #[tokio::test]
    async fn what_is_put_up_comes_into_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::new(|status| format!("node {}\n", status["node"]));
        board.set(&json!({"node": "a"}));
        let path = folder.path().to_owned();
        let writing = board.clone();
        let task = tokio::spawn(async move { writing.write_to(&path, Liveness::default()).await });
        let deadline = Instant::now() + Duration::from_secs(10);
        let stored = loop {
            match Stored::read(folder.path()) {
                Ok(stored) => break stored,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(stored.state, State::Running);
        assert_eq!(stored.status["node"], "a");
        assert_eq!(board.text().await, "node \"a\"\n");
        task.abort();
    }

    #[tokio::test]
    async fn details_are_rendered_for_those_who_ask_and_for_nobody_else() {
        let board = Board::new(|status| format!("{status}\n"));
        let mut questions = board.details();
        board.set(&json!({"count": 2}));
        assert_eq!((board.value(), questions.is_empty()), (json!({"count": 2}), true));
        let answer = async {
            let Some(question) = questions.recv().await else { return };
            let details = json!({"peers": ["a", "b"]}).as_object().cloned().unwrap();
            question.send(details).unwrap();
        };
        let (whole, ()) = tokio::join!(board.whole(), answer);
        assert_eq!(whole, json!({"count": 2, "peers": ["a", "b"]}));
        drop(questions);
        assert_eq!(board.text().await, "{\"count\":2}\n", "nobody answers any more");
    }
}
