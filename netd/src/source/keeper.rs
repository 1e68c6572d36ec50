//! `Keeper`: has a lease acquired, keeps it, and has it acquired again when it is lost.
//!
//! Invariants: a loss that is older than the claim is known to the claim and ignored; every other loss is acted on. A
//! store that fails is tried for ever, with a jittered pause; each kind of failure is reported once. A lease that is lost again and
//! again is claimed ever more slowly. Neither orders nor reports queue: of each kind one waits, the last or the one that concerns most.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::Backoff;
use cluster::heartbeat::{Heartbeat, Progress};
use daemon::slot::Slot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{AcquireError, Held, Keeping, LeaseRequest, LeaseSource, Readdress};

/// How the own lease stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeeperEvent {
    /// This node holds this lease.
    Held(Box<Held>),
    /// It was renewed.
    Kept,
    /// It cannot be had or renewed at the moment.
    Failing {
        /// Why.
        reason: String,
        /// Another node holds the lease of the subnet that this one's Pods live in, and there is no other subnet.
        taken: bool,
    },
}

/// Longest time that acquiring a lease takes, with many nodes in a race for few subnets and members that time out.
const LIMIT: Duration = Duration::from_secs(600);

/// Failures that are remembered, so that each is reported once.
const COMPLAINTS: usize = 100;

/// So many losses within [`CONTEST`] are claimed again at once; a store that is emptied, restored or revoked from has fewer.
const LOSSES: usize = 8;

/// See [`LOSSES`].
const CONTEST: Duration = Duration::from_secs(600);

/// The own key is gone or not ours any more.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Loss {
    reason: String,
    /// Since this revision of the store if that is known.
    revision: Option<i64>,
    /// It is there, and is written again for whoever else wrote it.
    objects: bool,
}

impl Loss {
    /// Whether a claim of `revision` does not know of it.
    fn concerns(&self, revision: i64) -> bool {
        self.revision.is_none_or(|since| since > revision)
    }

    /// The one of two that concerns more claims.
    fn or(self, before: Option<Self>) -> Self {
        match before {
            Some(before) if self.revision.is_some_and(|own| before.concerns(own)) => before,
            _ => self,
        }
    }
}

/// What the keeper is asked and has not read yet.
#[derive(Debug, Default)]
struct Orders {
    lost: Option<Loss>,
    /// This node has another address.
    moved: Option<Box<Readdress>>,
}

/// What the keeper reports and nobody has read yet.
#[derive(Debug, Default)]
struct Reports {
    held: Option<Box<Held>>,
    /// How the keeping goes since.
    state: Option<KeeperEvent>,
}

impl Reports {
    fn with(self, event: KeeperEvent) -> Self {
        match event {
            KeeperEvent::Held(held) => Self { held: Some(held), state: None },
            // That the subnet is another node's is true until one is held.
            KeeperEvent::Failing { reason, taken } => {
                let taken = taken || matches!(self.state, Some(KeeperEvent::Failing { taken: true, .. }));
                Self { state: Some(KeeperEvent::Failing { reason, taken }), ..self }
            }
            KeeperEvent::Kept => Self { state: Some(KeeperEvent::Kept), ..self },
        }
    }
}

/// The running keeper; it ends when this is dropped, and the lease stays.
pub(crate) struct Keeper {
    orders: Arc<Slot<Orders>>,
    reports: Arc<Slot<Reports>>,
    /// Taken out of the slot, and to be returned next.
    state: Option<KeeperEvent>,
    task: JoinHandle<()>,
    progress: Progress,
}

impl Keeper {
    /// Starts acquiring. `seed` spreads the retries of many nodes.
    #[must_use]
    pub(crate) fn start(source: impl LeaseSource, request: LeaseRequest, seed: u64) -> Self {
        let (orders, reports) = (Arc::<Slot<Orders>>::default(), Arc::<Slot<Reports>>::default());
        let heartbeat = Heartbeat::new(LIMIT);
        let progress = heartbeat.progress();
        let task = Task {
            heartbeat,
            source,
            request,
            reports: Arc::clone(&reports),
            orders: Arc::clone(&orders),
            backoff: Backoff::new(seed),
            complaints: BTreeSet::new(),
            losses: Vec::new(),
            lost: None,
            moved: None,
        };
        Self { orders, reports, state: None, task: tokio::spawn(task.run()), progress }
    }

    /// Whether it makes progress.
    #[must_use]
    pub(crate) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> KeeperEvent {
        if let Some(state) = self.state.take() {
            return state;
        }
        loop {
            let Reports { held, state } = self.reports.take().await;
            match (held, state) {
                (Some(held), state) => {
                    self.state = state;
                    return KeeperEvent::Held(held);
                }
                (None, Some(state)) => return state,
                (None, None) => {}
            }
        }
    }

    /// Reports that the own key is gone or not ours any more: acquire again, unless the claim is newer than `revision`.
    pub(crate) fn report_loss(&self, reason: String, revision: Option<i64>) {
        self.lose(Loss { reason, revision, objects: false });
    }

    /// Writes the own key again, whatever it says: another program has written it in `revision`.
    pub(crate) fn object(&self, reason: String, revision: i64) {
        self.lose(Loss { reason, revision: Some(revision), objects: true });
    }

    fn lose(&self, loss: Loss) {
        self.orders.merge(|waiting| {
            let Orders { lost, moved } = waiting.unwrap_or_default();
            Orders { lost: Some(loss.or(lost)), moved }
        });
    }

    /// Writes another address of this node into its lease.
    pub(crate) fn readdress(&self, to: Readdress) {
        self.orders.merge(|waiting| Orders { moved: Some(Box::new(to)), ..waiting.unwrap_or_default() });
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a lease is acquired once more.
enum End {
    /// It is gone, or not ours any more.
    Lost(String),
    /// It shall say something else.
    Moved(String),
}

struct Task<S> {
    heartbeat: Heartbeat,
    source: S,
    request: LeaseRequest,
    reports: Arc<Slot<Reports>>,
    orders: Arc<Slot<Orders>>,
    backoff: Backoff,
    /// Failures that have been reported since the last success; each is reported once.
    complaints: BTreeSet<String>,
    /// When the lease was lost of late.
    losses: Vec<Instant>,
    /// What was ordered and not acted on.
    lost: Option<Loss>,
    moved: Option<String>,
}

impl<S: LeaseSource> Task<S> {
    async fn run(mut self) {
        loop {
            let held = self.acquire().await;
            self.request.holds(&held);
            self.report(KeeperEvent::Held(Box::new(held.clone())));
            let subnet = held.lease.key.list();
            match self.hold(&held).await {
                End::Lost(reason) => {
                    tracing::warn!(subnet, reason, "the lease is lost: claiming the subnet again");
                    self.yield_to_a_rival(reason).await;
                }
                End::Moved(how) => tracing::info!(subnet, how, "the lease is written anew"),
            }
        }
    }

    /// Waits, ever longer, when the lease was lost again and again: two nodes that take one key for theirs, as copies of a running
    /// machine do, would write it without an end.
    async fn yield_to_a_rival(&mut self, reason: String) {
        let now = Instant::now();
        self.losses.retain(|at| now.duration_since(*at) < CONTEST);
        self.losses.push(now);
        let lost = self.losses.len();
        let Some(further) = lost.checked_sub(LOSSES + 1) else { return };
        let delay = Duration::from_secs(1 << further.min(5));
        let reason = format!(
            "the lease was lost {lost} times in {} minutes, the last time because {reason}: is another machine a copy of this one?",
            CONTEST.as_secs() / 60
        );
        self.report(KeeperEvent::Failing { reason, taken: false });
        self.wait(delay).await;
    }

    fn report(&self, event: KeeperEvent) {
        report(&self.reports, event);
    }

    async fn acquire(&mut self) -> Held {
        loop {
            // What is acquired says where this node is by now.
            self.moved = None;
            self.heartbeat.busy();
            match self.source.acquire(&self.request).await {
                Ok(held) => {
                    self.backoff.reset();
                    self.complaints.clear();
                    return held;
                }
                Err(error) => {
                    if let AcquireError::Rival(lease) = &error {
                        self.request.rival = Some((**lease).clone());
                    }
                    self.complain(error).await;
                }
            }
        }
    }

    /// Reports a failure and waits.
    async fn complain(&mut self, error: AcquireError) {
        let text = error.to_string();
        if self.complaints.len() >= COMPLAINTS {
            self.complaints.clear();
        }
        if self.complaints.insert(text.clone()) {
            tracing::warn!(error = text, "no lease yet; trying again");
            self.report(KeeperEvent::Failing { reason: text, taken: error.is_taken() });
        }
        let delay = self.backoff.next_delay();
        self.wait(delay).await;
    }

    /// Waits, and takes in what is ordered meanwhile.
    async fn wait(&mut self, delay: Duration) {
        self.heartbeat.back_within(delay);
        let pause = tokio::time::sleep(delay);
        tokio::pin!(pause);
        loop {
            let orders = tokio::select! {
                () = &mut pause => return,
                orders = self.orders.take() => orders,
            };
            self.take_in(orders);
        }
    }

    /// Notes what was ordered.
    fn take_in(&mut self, orders: Orders) {
        if let Some(loss) = orders.lost {
            self.lost = Some(loss.or(self.lost.take()));
        }
        if let Some(to) = orders.moved {
            self.request.moves(&to);
            let (address, backend) = (to.attrs.public_ips.list(), to.attrs.backend.name());
            self.moved = Some(format!("this node is reached at {address} by {backend} now"));
        }
    }

    /// Why what is held since `revision` is acquired once more, if it is.
    fn end(&mut self, revision: i64) -> Option<End> {
        if let Some(loss) = self.lost.take().filter(|loss| loss.concerns(revision)) {
            self.request.objects = loss.objects;
            return Some(End::Lost(loss.reason));
        }
        self.moved.take().map(End::Moved)
    }

    /// Holds the lease until it is lost and returns why.
    async fn hold(&mut self, held: &Held) -> End {
        loop {
            // What was ordered before it was held, or while it could not be renewed.
            if let Some(end) = self.end(held.revision) {
                return end;
            }
            let reports = Arc::clone(&self.reports);
            let kept = move |state| {
                let event = match state {
                    Keeping::Kept => KeeperEvent::Kept,
                    Keeping::Failing(reason) => {
                        tracing::warn!(error = reason, "the lease cannot be renewed");
                        KeeperEvent::Failing { reason, taken: false }
                    }
                };
                report(&reports, event);
            };
            self.heartbeat.idle();
            let source = self.source.clone();
            let keeping = source.keep(held, kept);
            tokio::pin!(keeping);
            let failed = loop {
                tokio::select! {
                    orders = self.orders.take() => {
                        self.take_in(orders);
                        if let Some(end) = self.end(held.revision) {
                            return end;
                        }
                    }
                    ended = &mut keeping => match ended {
                        Ok(reason) => return End::Lost(reason),
                        Err(error) => break error,
                    },
                }
            };
            self.complain(failed.into()).await;
        }
    }
}

fn report(reports: &Slot<Reports>, event: KeeperEvent) {
    reports.merge(|waiting| waiting.unwrap_or_default().with(event));
}

#[cfg(test)]
mod tests;
