//! Where leases come from: acquire this node's, keep it, and follow everybody's.
//!
//! Invariant: a subnet is claimed by creating its key in a transaction that fails when the key exists. A key of another
//! node is never overwritten, a key that our record does not name is never deleted, and a reservation (a key without
//! time to live) stays one.

mod etcd;
mod keeper;
pub(crate) mod kubernetes;
mod local;
pub(crate) mod record;
pub(crate) mod view;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::heartbeat::{Heartbeat, Progress};
use cluster::{ClusterError, Origin};
use netstate::family::PerFamily;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::choose::interface::NodeAddress;
use crate::choose::policy::Policy;
use crate::choose::subnet::{Candidate, Claim, NoSubnet};
use crate::format::lease::{Lease, LeaseAttrs, StoredLease, SubnetKey};
use crate::format::net_conf::Network;

pub(crate) use etcd::EtcdLeases;
pub(crate) use keeper::{Keeper, KeeperEvent};
pub(crate) use kubernetes::KubernetesLeases;
pub(crate) use local::LocalLeases;
pub(crate) use record::LeaseRecord;

/// What a source says about leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeaseEvent {
    /// A listing begins: what follows up to `Complete` is everything.
    Reset,
    /// The listing that began shows this state of this store.
    Origin(Origin),
    /// A lease is there.
    Put(Arc<StoredLease>),
    /// Several are, as a listing shows them.
    Puts(Vec<Arc<StoredLease>>),
    /// A lease is gone, since this revision of the store.
    Delete(SubnetKey, i64),
    /// A key is no lease, or its value cannot be read.
    Invalid {
        /// The key below `subnets/`.
        key: String,
        /// What is wrong, with the accepted form.
        reason: String,
        /// Revision in which it was written.
        revision: i64,
    },
    /// A key that was invalid is gone.
    Removed(String),
    /// What came since the last `Commit` or `Complete` belongs together and is all there.
    Commit,
    /// The listing has ended.
    Complete,
    /// The store is out of reach: what is known may be old. The listing that follows ends it.
    Lost(Box<ClusterError>),
}

impl LeaseEvent {
    /// The latest revision of the store that it shows.
    pub(crate) fn revision(&self) -> Option<i64> {
        match self {
            Self::Put(stored) => Some(stored.revision),
            Self::Puts(leases) => leases.iter().map(|stored| stored.revision).max(),
            Self::Delete(_, revision) | Self::Invalid { revision, .. } => Some(*revision),
            _ => None,
        }
    }
}

/// A running stream of events; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Events<T> {
    events: mpsc::Receiver<T>,
    task: JoinHandle<()>,
    loops: Vec<Progress>,
}

/// A stream of leases.
pub(crate) type LeaseEvents = Events<LeaseEvent>;

/// A stream of the texts of the network's configuration, beginning with the one that is there; `None` when there is none.
pub(crate) type Configs = Events<Option<Vec<u8>>>;

/// Longest time for passing on one event.
const LIMIT: Duration = Duration::from_secs(120);

/// Events in flight between a source and the daemon.
const QUEUE: usize = 1024;

impl<T: Send + 'static> Events<T> {
    pub(crate) fn spawn<F>(run: impl FnOnce(Sender<T>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ((sender, events), heartbeat) = (mpsc::channel(QUEUE), Heartbeat::new(LIMIT));
        let loops = vec![heartbeat.progress()];
        Self { events, task: tokio::spawn(run(Sender { sender, heartbeat })), loops }
    }

    /// The same, fed by another loop as well.
    #[must_use]
    fn fed_by(mut self, progress: Progress) -> Self {
        self.loops.push(progress);
        self
    }

    /// Whether the loops behind it make progress.
    pub(crate) fn loops(&self) -> &[Progress] {
        &self.loops
    }

    /// The next event. Cancel-safe. `None` only when the runtime shuts down.
    pub(crate) async fn next(&mut self) -> Option<T> {
        self.events.recv().await
    }

    /// An event that waits already.
    pub(crate) fn waiting(&mut self) -> Option<T> {
        self.events.try_recv().ok()
    }
}

/// The sending end of a stream; the loop that has it is judged by it.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    sender: mpsc::Sender<T>,
    heartbeat: Heartbeat,
}

impl<T> Sender<T> {
    /// Sends an event. Returns false when nobody listens any more.
    pub(crate) async fn send(&self, event: T) -> bool {
        self.heartbeat.busy();
        let sent = self.sender.send(event).await.is_ok();
        self.heartbeat.idle();
        sent
    }

    /// Waits until nobody listens any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl<T> Drop for Events<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A place where leases are kept.
pub(crate) trait LeaseSource: Clone + Send + Sync + 'static {
    /// Its name in status: `etcd`, `kubernetes` or `local`.
    fn kind(&self) -> &'static str;

    /// Whether other nodes have their leases there, and this node's own is among them. Without others there is nobody whose
    /// absence could be doubted.
    fn is_shared(&self) -> bool {
        true
    }

    /// Whether nodes take their subnets by themselves. Where somebody else gives them out, acquiring again makes nothing of another
    /// node's this one's.
    fn is_chosen_from(&self) -> bool {
        true
    }

    /// Where the network's configuration is, for messages.
    fn config_place(&self) -> String;

    /// The text of the network's configuration; `None` while nobody has written it.
    fn config(&self) -> impl Future<Output = Result<Option<Vec<u8>>, ConfigError>> + Send;

    /// Follows the network's configuration.
    fn configs(&self) -> Configs;

    /// Follows everybody's leases, beginning with all of them.
    fn events(&self) -> LeaseEvents;

    /// Every lease as it stands now, as one listing; from another member of the store than before, where there are several.
    fn list(&self) -> impl Future<Output = Result<Vec<LeaseEvent>, ClusterError>> + Send;

    /// Gets this node a subnet: keeps its own, or claims a free one.
    fn acquire(&self, request: &LeaseRequest) -> impl Future<Output = Result<Held, AcquireError>> + Send;

    /// Keeps a held lease until it is lost, and returns why it was; `report` gets each change.
    fn keep(
        &self,
        held: &Held,
        report: impl FnMut(Keeping) + Send,
    ) -> impl Future<Output = Result<String, ClusterError>> + Send;

    /// This host has another address: what was connected from the earlier one may be silent for ever.
    fn dial_anew(&self) {}

    /// Takes in how this node stands, where the source says so to others.
    fn publish(&self, _: NodeState) {}
}

/// How this node stands, for those who decide what runs on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeState {
    /// Whether what its Pods need stands, or why not; `None` while that is not known.
    pub stands: Option<Result<(), String>>,
    /// What an operator must act on.
    pub troubles: Vec<Trouble>,
}

/// Something that an operator must act on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trouble {
    /// A word for programs, such as `NoSubnet`.
    pub reason: &'static str,
    /// The same for people.
    pub message: String,
}

/// Why the network's configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The store cannot be asked; it may come back.
    #[error(transparent)]
    Store(#[from] ClusterError),
    /// The file cannot be read; only a person can change that.
    #[error("the network's configuration, which --net-config-path names: read {0}")]
    File(PathBuf, #[source] std::io::Error),
}

/// How the keeping of a lease goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It was renewed.
    Kept,
    /// It cannot be renewed at the moment.
    Failing(String),
}

/// What this node asks a source for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeaseRequest {
    /// The network that is cut into subnets.
    pub network: Network,
    /// This node.
    pub node: Candidate,
    /// How a subnet is chosen.
    pub policies: Vec<Policy>,
    /// What the lease shall say to the other nodes.
    pub attrs: LeaseAttrs,
    /// This node's tunnel device does not exist yet: it may be made with the hardware address that an earlier lease of
    /// this node names, and the other nodes notice nothing.
    pub adopts_mac: bool,
    /// Leases that this node has held before.
    pub record: LeaseRecord,
    /// The lease of another node that lives and has this node's address as well.
    pub rival: Option<Lease>,
    /// Its lease is written again although it says what it shall, so that whoever wrote it learns that this node lives.
    pub objects: bool,
}

/// What changes about a node that moves to other addresses, or to another backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readdress {
    /// Its new addresses.
    pub addresses: PerFamily<Option<NodeAddress>>,
    /// What its lease shall say to the other nodes.
    pub attrs: LeaseAttrs,
    /// The network as it is configured now.
    pub network: Network,
}

impl LeaseRequest {
    /// True when nothing but its address says that `claim` is this node's: what reaches its node is somebody else's. Or everything but its
    /// address does.
    fn doubts(&self, claim: &Claim) -> bool {
        let (theirs, own) = (&claim.lease().attrs.backend, &self.attrs.backend);
        self.node.may_be_a_copys(claim)
            || self.node.doubts(claim) && theirs.name() == own.name() && (theirs != own || own.is_common())
    }

    /// What to write into the lease that is kept.
    fn attrs_for(&self, kept: &LeaseAttrs) -> LeaseAttrs {
        if self.adopts_mac && self.attrs.backend.can_be(&kept.backend) {
            return LeaseAttrs { backend: kept.backend.clone(), ..self.attrs.clone() };
        }
        self.attrs.clone()
    }

    /// After a loss the other nodes shall find everything as it was.
    fn holds(&mut self, held: &Held) {
        self.node.held = held.lease.key.subnets();
        self.attrs = held.lease.attrs.clone();
        (self.adopts_mac, self.objects) = (false, false);
        self.record.add(held);
    }

    fn moves(&mut self, to: &Readdress) {
        self.node.addresses = to.addresses;
        self.attrs = to.attrs.clone();
        self.network = to.network.clone();
    }
}

impl AcquireError {
    /// True when another node holds the lease of the subnet that this one's Pods live in.
    const fn is_taken(&self) -> bool {
        matches!(self, Self::NoSubnet(NoSubnet { taken: true, .. }))
    }
}

/// A lease that this node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The lease.
    pub lease: Lease,
    /// What ends it, by the store's number; `None` for a reservation, which stays.
    pub token: Option<i64>,
    /// Revision of the store in which it was seen to be ours.
    pub revision: i64,
    /// How it was come by, for the log.
    pub how: String,
    /// Other keys that name this node and stay: not ours to delete.
    pub others: Vec<Lease>,
}

/// Why no subnet could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    /// The store cannot be asked, or said no.
    #[error(transparent)]
    Store(#[from] ClusterError),
    /// Nothing is free.
    #[error(transparent)]
    NoSubnet(#[from] NoSubnet),
    /// Another node has this one's address, or this one is a copy of it, and holds the lease.
    #[error(
        "{} is leased to another node at {} ({}), which lives: where that is this node's address as well, give one of them another one or \
         --public-ip; where this machine is a copy of that one, remove what was copied: netd cleanup --files --yes",
        .0.key.list(), .0.attrs.public_ips.list(), .0.attrs.backend.describe()
    )]
    Rival(Box<Lease>),
    /// Something is not there yet that others make: what, and who.
    #[error("{0}")]
    Awaited(String),
    /// Others were always faster.
    #[error("lost the race for a subnet {0} times: is the store in order?")]
    Races(u32),
}
