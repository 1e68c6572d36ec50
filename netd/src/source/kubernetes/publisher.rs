//! What this node says of itself in its Node: the condition `NetworkUnavailable`, and Events for what an operator must act on.
//!
//! Invariants: a Node that says otherwise is corrected, whoever changed it, after a pause that grows with every time; a data path
//! counts as broken when it has been for [`DWELL`]; nothing here delays a lease.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::kubernetes::events::{Due, Grade, Notice, Recorder, Subject};
use cluster::kubernetes::{Client, Patch};
use cluster::{Backoff, ClusterError};
use daemon::slot::Slot;
use serde::de::IgnoredAny;
use tokio::sync::watch as state;
use tokio::time::{Instant, sleep_until};

use super::own::Own;
use crate::format::node::{AnnotationPrefix, Condition, Observed, condition_patch};
use crate::source::{NodeState, Trouble};

/// How long a data path is broken before the Node says so: a pass that repairs it takes less.
const DWELL: Duration = Duration::from_secs(5);

/// The component that the Events come from.
const COMPONENT: &str = "netd";

/// A condition that stood for so long is not contested.
const PEACE: Duration = Duration::from_secs(60);

/// The own Node, for writing.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) prefix: AnnotationPrefix,
    /// Whether the condition is written.
    pub(super) condition: bool,
    /// What makes names of Events different.
    pub(super) seed: u64,
}

impl Writer {
    /// Path of the subresource that patches are sent to.
    pub(super) fn status_path(&self) -> String {
        format!("/api/v1/nodes/{}/status", self.name)
    }

    /// Creates an Event about the own Node.
    pub(super) async fn create(&self, own: &Own, trouble: &Trouble) -> Result<(), ClusterError> {
        let uid = own.node.as_deref().map(|own| own.node.metadata.uid.clone());
        let subject = Subject::Node { name: self.name.clone(), uid };
        let Trouble { reason, message } = trouble.clone();
        let notice = Notice { subject, grade: Grade::Warning, reason, action: "", message, common: false };
        let recorder = Recorder::new(self.client.clone(), COMPONENT, &self.name, self.seed);
        recorder.create(&notice).await
    }
}

/// The loop that keeps the Node's words true.
pub(super) struct Publisher {
    writer: Writer,
    own: state::Receiver<Own>,
    states: Arc<Slot<NodeState>>,
    started: Instant,
    due: Due<Trouble>,
    /// What is wrong, as it was reported last.
    troubles: Vec<Trouble>,
    /// What the Node shall say.
    wanted: Option<Condition>,
    /// Since when the data path is broken.
    broken: Option<Instant>,
    /// It was written at least once in these words.
    worded: Option<Condition>,
    backoff: Backoff,
    /// Not before this it is written again.
    again: Option<Instant>,
    reported: String,
    /// Why the last Event could not be created.
    unsent: String,
}

impl Publisher {
    pub(super) fn new(writer: Writer, own: state::Receiver<Own>, states: Arc<Slot<NodeState>>) -> Self {
        let backoff = Backoff::new(writer.seed);
        Self {
            writer,
            own,
            states,
            started: Instant::now(),
            due: Due::default(),
            troubles: Vec::new(),
            wanted: None,
            broken: None,
            worded: None,
            backoff,
            again: None,
            reported: String::new(),
            unsent: String::new(),
        }
    }

    /// Runs until nobody follows the own Node any more.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.due();
            tokio::select! {
                state = self.states.take() => self.take_in(state),
                changed = self.own.changed() => if changed.is_err() {
                    return;
                },
                () = async { match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                } } => {}
            }
            self.write_condition().await;
            self.say().await;
        }
    }

    fn take_in(&mut self, state: NodeState) {
        self.troubles = state.troubles;
        match state.stands {
            None => {}
            Some(Ok(())) => {
                self.broken = None;
                self.wanted = Some(Condition::Stands);
            }
            Some(Err(why)) => {
                self.broken.get_or_insert_with(Instant::now);
                self.wanted = Some(Condition::Broken(why));
            }
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// When there is something to do although nothing happens.
    fn due(&self) -> Option<Instant> {
        let broken = self.broken.map(|since| since + DWELL).filter(|due| *due > Instant::now());
        let notice = self.due.next().map(|due| self.started + due);
        let again = self.again.filter(|again| *again > Instant::now());
        [broken, notice, again].into_iter().flatten().min()
    }

    async fn write_condition(&mut self) {
        let own = self.own.borrow_and_update().clone();
        let (Some(wanted), Some(node)) = (self.wanted.clone().filter(|_| self.writer.condition), own.node) else {
            return;
        };
        let now = Instant::now();
        let is_young = self.broken.is_some_and(|since| now < since + DWELL);
        let is_due = match wanted.observed(&node) {
            Observed::Same => false,
            // Who else says the same is right; in our words it is said once.
            Observed::OtherWords => self.worded.as_ref() != Some(&wanted),
            Observed::Differs => true,
        };
        if !is_due || is_young || self.again.is_some_and(|again| now < again) {
            return;
        }
        if self.again.is_some_and(|again| now > again + PEACE) {
            self.backoff.reset();
        }
        self.again = Some(now + self.backoff.next_delay());
        let patch = Patch::Strategic(condition_patch(&wanted, since_1970()));
        match self.writer.client.patch::<IgnoredAny>(&self.writer.status_path(), &patch).await {
            Ok(_) => {
                self.reported.clear();
                match &wanted {
                    Condition::Stands => tracing::info!("NetworkUnavailable of this node's Node is False"),
                    Condition::Broken(why) => tracing::error!(why, "NetworkUnavailable of this node's Node is True"),
                }
                self.worded = Some(wanted);
            }
            Err(error) => {
                let text = error.to_string();
                if text != self.reported {
                    tracing::warn!(error = text, "NetworkUnavailable cannot be written; trying again");
                    self.reported = text;
                }
            }
        }
    }

    async fn say(&mut self) {
        let own = self.own.borrow().clone();
        let odd = own.node.iter().flat_map(|own| self.writer.prefix.unusable(&own.node));
        let odd = odd.map(|message| Trouble { reason: "InvalidAnnotation", message });
        let troubles = self.troubles.iter().cloned().chain(odd).collect();
        self.due.set(troubles, self.elapsed());
        while let Some(trouble) = self.due.take(self.elapsed()) {
            if let Err(error) = self.writer.create(&own, &trouble).await {
                let text = error.to_string();
                if text != self.unsent {
                    tracing::warn!(error = text, reason = trouble.reason, "an Event cannot be created; trying again");
                    self.unsent = text;
                }
                self.due.failed(trouble, self.elapsed());
            }
        }
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
