//! Leases in a Kubernetes API server, as flannel's kube subnet manager has them: podCIDRs and annotations of Nodes.
//!
//! The controller-manager gives subnets out; this node says how it is reached. Invariants: a Node is written only where it says
//! something else; nothing that the API server, the Node or the controller-manager lacks ends the program; what the own Node shall
//! say is written again when somebody takes it away, and ever more slowly when that goes on.

mod fold;
mod own;
mod publisher;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::kubernetes::{Client, Collection, Patch, metadata_and_spec, watch_read};
use cluster::{ClusterError, Source};
use daemon::slot::Slot;
use netstate::family::PerFamily;
use tokio::sync::watch as state;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::local::{follow_file, read_file};
use super::{
    AcquireError, ConfigError, Configs, Held, Keeping, LeaseEvent, LeaseEvents, LeaseRequest, LeaseSource, NodeState,
    Sender, Trouble,
};
use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::format::net_conf::Network;
use crate::format::node::{AnnotationPrefix, Node, annotations_patch};
use fold::{Fold, NodeEvent, Scope};
pub(crate) use own::NodeName;
use own::{Own, Written};
use publisher::{Publisher, Writer};

/// Leases that are passed on together.
const TOGETHER: usize = 256;

/// Longest time that saying why the program ends may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// So often within [`CONTEST`] annotations are written again at once; then whoever takes them away makes this node wait.
const PATIENCE: usize = 5;
const CONTEST: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(60);

/// What the flags say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// File with the network's configuration.
    pub net_conf: PathBuf,
    /// What stands before the annotations' names.
    pub prefix: AnnotationPrefix,
    /// Which Node is this node's.
    pub node: NodeName,
    /// The Node says whether its network is there.
    pub condition: bool,
}

/// The Nodes of one cluster; clones share everything.
#[derive(Clone)]
pub(crate) struct KubernetesLeases {
    shared: Arc<Shared>,
}

struct Shared {
    writer: Writer,
    net_conf: PathBuf,
    seed: u64,
    scope: state::Sender<Scope>,
    own: state::Receiver<Own>,
    states: Arc<Slot<NodeState>>,
    /// How often the store had gone back when it was written.
    returns: AtomicU64,
    /// When it was written anew because it was taken away.
    restored: Mutex<Vec<Instant>>,
    publisher: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}

impl KubernetesLeases {
    /// The Nodes that `client` shows, once this node's is among them. `report` is given what is waited for.
    pub(crate) async fn begin(client: Client, settings: Settings, seed: u64, report: impl Fn(&str)) -> Self {
        let name = settings.node.wait(&client, seed, &report).await;
        tracing::info!(node = name, server = client.server(), "this node's Node");
        let mut own = own::follow(&client, &name, seed);
        own::wait(&mut own, &name, &report).await;
        report("");
        let Settings { net_conf, prefix, condition, .. } = settings;
        let writer = Writer { client, name, prefix, condition, seed };
        let states = Arc::new(Slot::default());
        let publisher = Publisher::new(writer.clone(), own.clone(), Arc::clone(&states));
        let publisher = tokio::spawn(publisher.run());
        let (scope, _) = state::channel(Scope { own: writer.name.clone(), ..Scope::default() });
        let shared = Shared {
            writer,
            net_conf,
            seed,
            scope,
            own,
            states,
            returns: AtomicU64::default(),
            restored: Mutex::default(),
            publisher,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The addresses that the Node's annotations name in place of `--public-ip` and `--public-ipv6`.
    pub(crate) fn public_ips(&self) -> PerFamily<Option<IpAddr>> {
        let own = self.shared.own.borrow();
        own.node.as_deref().map(|own| self.shared.writer.prefix.node_public_ips(&own.node)).unwrap_or_default()
    }

    /// Says why the program ends, where an operator reads it.
    pub(crate) async fn report_end(&self, why: &anyhow::Error) {
        let trouble = Trouble { reason: "StartFailed", message: format!("{why:#}") };
        let own = self.shared.own.borrow().clone();
        let _ = tokio::time::timeout(FAREWELL, self.shared.writer.create(&own, &trouble)).await;
    }

    fn nodes(&self) -> Source<String, Result<Box<Node>, String>> {
        let nodes = Collection::new("", "v1", "nodes");
        watch_read(&self.shared.writer.client, nodes, self.shared.seed, |_, text| node_of(text))
    }

    fn fold(&self) -> Fold {
        Fold::new(self.shared.writer.prefix.clone(), self.shared.scope.borrow().clone())
    }

    /// The own Node as it is now.
    async fn get(&self) -> Result<Node, AcquireError> {
        let name = &self.shared.writer.name;
        let node = self.shared.writer.client.get(&format!("/api/v1/nodes/{name}")).await;
        node.map_err(
            |error| if own::is_absent(&error) { AcquireError::Awaited(own::absent(name)) } else { error.into() },
        )
    }

    /// The subnets of the own Node.
    fn key(&self, node: &Node, network: &Network) -> Result<SubnetKey, AcquireError> {
        let Writer { name, prefix, .. } = &self.shared.writer;
        let awaited = |why: &str, advice: &str| AcquireError::Awaited(format!("Node {name}: {why}: {advice}"));
        let families = self.shared.scope.borrow().families;
        let key = prefix.key(node, families).map_err(|why| {
            let advice = "have the controller-manager give them out (--allocate-node-cidrs=true --cluster-cidr=<Network of \
                          net-conf.json>, kubeadm's networking.podSubnet), or write spec.podCIDR and spec.podCIDRs";
            awaited(&why, advice)
        })?;
        let outside =
            key.prefixes().find(|subnet| !network.pool(subnet).is_some_and(|pool| pool.network.covers(subnet)));
        outside.map_or(Ok(key), |subnet| {
            let why =
                format!("its podCIDR {subnet} is not in the network {network} of {}", self.shared.net_conf.display());
            Err(awaited(&why, "Network there and --cluster-cidr of the controller-manager must be the same"))
        })
    }

    /// Why what the own Node says since `revision` has to be written again.
    fn loss(&self, held: &Held) -> Option<String> {
        let (own, Shared { writer, scope, .. }) = (self.shared.own.borrow().clone(), &*self.shared);
        if own.node.is_none() && own.listed {
            return Some(format!("Node {} was deleted", writer.name));
        }
        let returns = self.shared.returns.load(Ordering::Relaxed);
        let node = own.since(Written { revision: held.revision, returns })?;
        if writer.prefix.key(&node.node, scope.borrow().families).ok() != Some(held.lease.key) {
            return Some("its podCIDR is another one".to_owned());
        }
        let announced = scope.borrow().announced.clone()?;
        let differing = writer.prefix.differing(&node.node, &announced);
        let names: Vec<String> = differing.into_keys().collect();
        (!names.is_empty()).then(|| format!("annotations of Node {} differ: {}", writer.name, names.join(", ")))
    }

    /// How long whoever takes the annotations away makes this node wait.
    fn pause(&self) -> Duration {
        let (mut restored, now) = (self.shared.restored.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        restored.retain(|at| now.duration_since(*at) < CONTEST);
        restored.push(now);
        if restored.len() > PATIENCE { PAUSE } else { Duration::ZERO }
    }
}

impl LeaseSource for KubernetesLeases {
    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn is_chosen_from(&self) -> bool {
        false
    }

    fn config_place(&self) -> String {
        self.shared.net_conf.display().to_string()
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        read_file(&self.shared.net_conf).await.map(Some)
    }

    fn configs(&self) -> Configs {
        follow_file(self.shared.net_conf.clone())
    }

    fn events(&self) -> LeaseEvents {
        let source = self.nodes();
        let (progress, followed) = (source.progress(), self.clone());
        LeaseEvents::spawn(move |events| follow(followed, source, events)).fed_by(progress)
    }

    fn dial_anew(&self) {
        self.shared.writer.client.dial_anew();
    }

    async fn list(&self) -> Result<Vec<LeaseEvent>, ClusterError> {
        let (mut source, mut fold, mut listing) = (self.nodes(), self.fold(), Vec::new());
        while let Some(event) = source.next().await {
            for event in fold.apply(event) {
                match event {
                    LeaseEvent::Reset => listing.clear(),
                    LeaseEvent::Lost(error) => return Err(*error),
                    _ => {}
                }
                let is_whole = event == LeaseEvent::Complete;
                listing.push(event);
                if is_whole {
                    return Ok(listing);
                }
            }
        }
        Ok(listing)
    }

    async fn acquire(&self, request: &LeaseRequest) -> Result<Held, AcquireError> {
        let Shared { writer, scope, .. } = &*self.shared;
        let families = request.network.pools.as_ref().map(|_, pool| pool.is_some());
        scope.send_if_modified(|scope| std::mem::replace(&mut scope.families, families) != families);
        self.shared.returns.store(self.shared.own.borrow().returns, Ordering::Relaxed);
        let node = self.get().await?;
        let key = self.key(&node, &request.network)?;
        let before = writer.prefix.announced(&node, &key);
        let attrs = before.map_or_else(|| request.attrs.clone(), |before| request.attrs_for(&before));
        // Not as an operator's annotations have changed them.
        let public_ips = request.node.addresses.map(|_, own| own.map(|own| own.public_ip));
        let attrs = LeaseAttrs { public_ips, ..attrs };
        let differing = writer.prefix.differing(&node, &attrs);
        let (node, how) = if differing.is_empty() {
            (node, "its Node says so already")
        } else {
            let patch = Patch::Strategic(annotations_patch(&differing));
            (writer.client.patch(&writer.status_path(), &patch).await?, "its Node's annotations were written")
        };
        scope.send_if_modified(|scope| scope.announced.replace(attrs.clone()) != Some(attrs));
        let shown = scope.borrow().lease(&writer.prefix, &node);
        let shown = shown.unwrap_or_else(|| Err("its annotations are gone".to_owned()));
        let lease: Lease = shown.map_err(|why| AcquireError::Awaited(format!("Node {}: {why}", writer.name)))?;
        Ok(Held { lease, token: None, revision: node.revision(), how: how.to_owned(), others: Vec::new() })
    }

    async fn keep(&self, held: &Held, _: impl FnMut(Keeping) + Send) -> Result<String, ClusterError> {
        let mut own = self.shared.own.clone();
        loop {
            own.borrow_and_update();
            if self.loss(held).is_some() {
                tokio::time::sleep(self.pause()).await;
                if let Some(reason) = self.loss(held) {
                    return Ok(reason);
                }
            }
            if own.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn publish(&self, state: NodeState) {
        self.shared.states.put(state);
    }
}

/// A Node from its JSON text, of which no more is read than is kept.
fn node_of(text: &str) -> Result<Box<Node>, String> {
    let (metadata, spec) = metadata_and_spec(text).map_err(|error| error.to_string())?;
    Ok(Box::new(Node { metadata, spec }))
}

/// Turns the events of Nodes into events of leases, for as long as somebody listens. Where the network has other families or this
/// node other addresses, all are listed anew.
async fn follow(
    leases: KubernetesLeases,
    mut source: Source<String, Result<Box<Node>, String>>,
    events: Sender<LeaseEvent>,
) {
    let mut scope = leases.shared.scope.subscribe();
    let mut fold = leases.fold();
    loop {
        let event = tokio::select! {
            Ok(()) = scope.changed() => {
                if fold.set_scope(&scope.borrow_and_update()) {
                    (source, fold) = (leases.nodes(), leases.fold());
                }
                continue;
            }
            event = source.next() => event,
        };
        let Some(event) = event else { return };
        for event in waiting(event, &mut source, &mut fold) {
            if event == LeaseEvent::Complete {
                tracing::info!(nodes = fold.nodes(), "the leases are listed");
            }
            if !events.send(event).await {
                return;
            }
        }
    }
}

/// What an event and those that wait behind it are for the leases: leases that come together are one event.
fn waiting(
    first: NodeEvent,
    source: &mut Source<String, Result<Box<Node>, String>>,
    fold: &mut Fold,
) -> Vec<LeaseEvent> {
    let mut all: Vec<LeaseEvent> = Vec::new();
    let mut next = Some(first);
    for _ in 0..TOGETHER {
        let Some(event) = next else { break };
        all.extend(fold.apply(event));
        next = source.try_next();
    }
    all.extend(next.into_iter().flat_map(|event| fold.apply(event)));
    let mut joined: Vec<LeaseEvent> = Vec::new();
    for event in all {
        match (joined.last_mut(), event) {
            (Some(LeaseEvent::Puts(leases)), LeaseEvent::Put(stored)) => leases.push(stored),
            (_, LeaseEvent::Put(stored)) => joined.push(LeaseEvent::Puts(vec![stored])),
            (_, event) => joined.push(event),
        }
    }
    joined
}
