//! `Board`: the newest status, for the file and for whoever asks.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::status::File;
use crate::worker::Liveness;

/// The newest status; clones are the same board.
#[derive(Clone)]
pub struct Board {
    shared: Arc<Shared>,
}

struct Shared {
    status: Mutex<Value>,
    changed: Notify,
    render: fn(&Value) -> String,
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
        Self { shared: Arc::new(Shared { status: Mutex::new(Value::Null), changed: Notify::new(), render }) }
    }

    /// Puts `status` up.
    pub fn set(&self, status: &impl Serialize) {
        match serde_json::to_value(status) {
            Ok(status) => {
                *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
                self.shared.changed.notify_one();
            }
            Err(error) => tracing::error!(%error, "the status cannot be written as JSON"),
        }
    }

    /// The newest status; null before the first.
    #[must_use]
    pub fn value(&self) -> Value {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest status for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        (self.shared.render)(&self.value())
    }

    /// Writes what is put up into the status file of `folder`, for as long as the future is polled. The heartbeat stops
    /// while `liveness` says stuck.
    pub async fn write_to(self, folder: &Path, liveness: Liveness) {
        let start = Instant::now();
        let mut file = File::new(folder, liveness);
        loop {
            let left = file.next().saturating_sub(start.elapsed()).max(Duration::from_millis(1));
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
        assert_eq!(board.text(), "node \"a\"\n");
        task.abort();
    }
}
