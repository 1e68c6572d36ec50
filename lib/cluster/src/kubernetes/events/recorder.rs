//! `Recorder`: creates Events. `Reporter`: the loop that creates those of what stands.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::due::Due;
use super::notice::{Notice, Source, Subject};
use crate::ClusterError;
use crate::kubernetes::Client;

/// Creates Events in the name of one program on one node.
#[derive(Debug, Clone)]
pub struct Recorder {
    client: Client,
    component: &'static str,
    host: String,
    seed: u64,
}

/// As much of a listing as has an object's uid.
#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
}

impl Recorder {
    /// Events come from `component` on the node `host`; `seed` makes their names different.
    #[must_use]
    pub fn new(client: Client, component: &'static str, host: &str, seed: u64) -> Self {
        Self { client, component, host: host.to_owned(), seed }
    }

    /// Creates an Event. One of a Service that is gone is none.
    ///
    /// # Errors
    /// What the server says, or that it does not answer.
    pub async fn create(&self, notice: &Notice) -> Result<(), ClusterError> {
        let uid = match &notice.subject {
            Subject::Node { .. } => None,
            Subject::Service { namespace, name } => match self.uid_of(namespace, name).await? {
                None => return Ok(()),
                uid => uid,
            },
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = self.seed ^ u64::try_from(now.as_nanos()).unwrap_or_default();
        let source = Source { component: self.component, host: &self.host };
        let event = notice.event(source, uid.as_deref(), now, number);
        let path = format!("/api/v1/namespaces/{}/events", notice.subject.namespace());
        match self.client.create::<IgnoredAny>(&path, &event).await {
            // Another node has reported it.
            Err(error) if notice.common && error.status() == Some(409) => Ok(()),
            created => created.map(drop),
        }
    }

    /// The uid of a Service, by which `kubectl describe` asks for its Events; none where there is no such Service.
    async fn uid_of(&self, namespace: &str, name: &str) -> Result<Option<String>, ClusterError> {
        let path = format!("/api/v1/namespaces/{namespace}/services?fieldSelector=metadata.name%3D{name}");
        let found: Found = self.client.list(&path).await?;
        Ok(found.items.into_iter().next().map(|item| item.metadata.uid))
    }
}

/// Reports what stands, for as long as this lives; whoever sets it waits for nothing.
#[derive(Debug)]
pub struct Reporter {
    standing: watch::Sender<Vec<Notice>>,
    task: JoinHandle<()>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reporter {
    /// Begins with one Event of `first`. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(recorder: Recorder, first: Notice) -> Self {
        let (standing, changes) = watch::channel(Vec::new());
        Self { standing, task: tokio::spawn(report(recorder, first, changes)) }
    }

    /// Exactly this stands now.
    pub fn set(&self, standing: Vec<Notice>) {
        self.standing.send_if_modified(|before| {
            let differs = *before != standing;
            *before = standing;
            differs
        });
    }
}

async fn report(recorder: Recorder, first: Notice, mut standing: watch::Receiver<Vec<Notice>>) {
    let (started, mut due, mut words) = (Instant::now(), Due::default(), String::new());
    due.add_once(first, Duration::ZERO);
    loop {
        while let Some(notice) = due.take(started.elapsed()) {
            match recorder.create(&notice).await {
                Ok(()) => words.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != words {
                        tracing::warn!(
                            error = text,
                            reason = notice.reason,
                            "an Event cannot be created; trying again"
                        );
                        words = text;
                    }
                    due.failed(notice, started.elapsed());
                }
            }
            // What has passed meanwhile is not reported any more.
            if standing.has_changed().unwrap_or(false) {
                due.set(standing.borrow_and_update().clone(), started.elapsed());
            }
        }
        let next = due.next().map(|next| started + next);
        tokio::select! {
            changed = standing.changed() => {
                if changed.is_err() {
                    return;
                }
                due.set(standing.borrow_and_update().clone(), started.elapsed());
            }
            () = async { match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            } } => {}
        }
    }
}
