//! This node's own Node, followed through a field selector, and the waiting for it.
//!
//! Invariant: what was known of it stays while the API server is out of reach; that it does not exist is said only of a listing or a
//! deletion.

use std::sync::Arc;
use std::time::Duration;

use cluster::kubernetes::{Client, Collection, watch};
use cluster::{Backoff, ClusterError, Event, Source};
use serde::Deserialize;
use tokio::sync::watch as state;

use crate::format::node::OwnNode;

/// How long a Node is waited for before what is missing is said.
const PATIENCE: Duration = Duration::from_millis(300);

/// What is known of the own Node.
#[derive(Debug, Clone, Default)]
pub(super) struct Own {
    /// It, as it was seen last.
    pub(super) node: Option<Arc<OwnNode>>,
    /// A listing has ended: without a Node there is none.
    pub(super) listed: bool,
    /// Why it cannot be followed at the moment.
    pub(super) lost: Option<String>,
}

/// Which Node is this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeName {
    /// By its name.
    Named(String),
    /// The one that this Pod runs on.
    OfPod {
        /// The Pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// As much of a Pod as names its Node.
#[derive(Deserialize)]
struct Pod {
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
}

impl NodeName {
    /// The Node's name, waited for where the API server knows it only.
    pub(super) async fn wait(&self, client: &Client, seed: u64, report: impl Fn(&str)) -> String {
        let (namespace, name) = match self {
            Self::Named(name) => return name.clone(),
            Self::OfPod { namespace, name } => (namespace, name),
        };
        let client = client.granted_by(&pod_grants(namespace));
        let (mut backoff, mut reported) = (Backoff::new(seed), String::new());
        loop {
            let trouble = match client.get::<Pod>(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await {
                Ok(pod) if !pod.spec.node_name.is_empty() => return pod.spec.node_name,
                Ok(_) => format!("Pod {namespace}/{name} (POD_NAMESPACE and POD_NAME) runs on no node"),
                Err(error) => error.to_string(),
            };
            if trouble != reported {
                tracing::warn!("waiting: {trouble}");
                report(&trouble);
                reported = trouble;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// What grants the right to read the own Pod. The ClusterRole of our manifests does not: they name the Node.
fn pod_grants(namespace: &str) -> String {
    format!(
        "a Role of namespace {namespace} as in docs/flannel.md (with NODE_NAME, as configs/kubernetes/netd sets it, none is needed)"
    )
}

/// The own Node, from now on.
pub(super) fn follow(client: &Client, name: &str, seed: u64) -> state::Receiver<Own> {
    let nodes = Collection::new("", "v1", "nodes").field(&format!("metadata.name={name}"));
    let source = watch::<OwnNode>(client, nodes, seed);
    let (sender, receiver) = state::channel(Own::default());
    tokio::spawn(fold(source, sender));
    receiver
}

async fn fold(mut source: Source<String, Result<Box<OwnNode>, String>>, sender: state::Sender<Own>) {
    let mut next: Option<Arc<OwnNode>> = None;
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            event = source.next() => event,
        };
        match event {
            None => return,
            Some(Event::Reset) => next = None,
            Some(Event::Put { value: Ok(node), .. }) => next = Some(node.into()),
            Some(Event::Put { value: Err(reason), .. }) => {
                tracing::warn!(reason, "this node's Node cannot be read; what it said before stays");
                next.clone_from(&sender.borrow().node);
            }
            Some(Event::Delete { .. }) => next = None,
            Some(Event::Commit | Event::Complete) => {
                drop(sender.send_replace(Own { node: next.clone(), listed: true, lost: None }));
            }
            Some(Event::Lost(error)) => sender.send_modify(|own| own.lost = Some(error.to_string())),
            Some(_) => {}
        }
    }
}

/// Waits until the own Node is there. `report` is given what is missing, whenever that changes.
pub(super) async fn wait(own: &mut state::Receiver<Own>, name: &str, report: impl Fn(&str)) -> Option<Arc<OwnNode>> {
    let mut reported = String::new();
    loop {
        let Own { node, listed, lost } = own.borrow_and_update().clone();
        let trouble = match (node, lost, listed) {
            (Some(node), ..) => return Some(node),
            (None, Some(lost), _) => lost,
            (None, None, true) => absent(name),
            (None, None, false) => String::new(),
        };
        // An answer may be on its way.
        match tokio::time::timeout(PATIENCE, own.changed()).await {
            Ok(changed) => {
                changed.ok()?;
                continue;
            }
            Err(_) if trouble.is_empty() || trouble == reported => {}
            Err(_) => {
                tracing::warn!("waiting: {trouble}");
                report(&trouble);
                reported = trouble;
            }
        }
        own.changed().await.ok()?;
    }
}

/// What is to be done about a Node that does not exist.
pub(super) fn absent(name: &str) -> String {
    format!(
        "Node {name} does not exist: kubelet makes it when it registers. Is NODE_NAME the name that kubelet uses (its \
         --hostname-override)?"
    )
}

/// True when the server says that there is no such object.
pub(super) fn is_absent(error: &ClusterError) -> bool {
    error.status() == Some(404)
}
