//! This node's own Node, followed through a field selector, and the waiting for it.
//!
//! Invariants: what was known of it stays while the API server is out of reach; that it does not exist is said only of a listing or a
//! deletion. A Node in an earlier revision than before is one of a store that was restored from a backup: what this node wrote later
//! is not in it.

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
    /// How often the store has gone back.
    pub(super) returns: u64,
}

/// What this node wrote into its Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// In this revision.
    pub(super) revision: i64,
    /// When the store had gone back so often.
    pub(super) returns: u64,
}

impl Own {
    /// The Node, unless it may be older than what was `written`.
    pub(super) fn since(&self, written: Written) -> Option<&OwnNode> {
        let is_later = |own: &&OwnNode| {
            let revision = own.node.revision();
            revision > written.revision || revision == 0 || self.returns != written.returns
        };
        self.node.as_deref().filter(is_later)
    }
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
    let mut following = Following::default();
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            event = source.next() => event,
        };
        match event {
            None => return,
            Some(Event::Lost(error)) => sender.send_modify(|own| own.lost = Some(error.to_string())),
            Some(event) => {
                if let Some(own) = following.take_in(event) {
                    drop(sender.send_replace(own));
                }
            }
        }
    }
}

/// The own Node as events say it.
#[derive(Debug, Default)]
struct Following {
    /// What was said last, and what was said at the end of that.
    next: Option<Arc<OwnNode>>,
    known: Option<Arc<OwnNode>>,
    /// The revision that it was seen in last.
    newest: i64,
    returns: u64,
}

impl Following {
    /// What is known at the end of what belongs together.
    fn take_in(&mut self, event: Event<String, Result<Box<OwnNode>, String>>) -> Option<Own> {
        match event {
            Event::Put { value: Ok(node), .. } => {
                let revision = node.node.revision();
                self.returns += u64::from(revision < self.newest);
                self.newest = revision;
                self.next = Some(node.into());
            }
            Event::Put { value: Err(reason), .. } => {
                tracing::warn!(reason, "this node's Node cannot be read; what it said before stays");
                self.next.clone_from(&self.known);
            }
            Event::Reset | Event::Delete { .. } => self.next = None,
            Event::Commit | Event::Complete => {
                self.known.clone_from(&self.next);
                return Some(Own { node: self.next.clone(), listed: true, lost: None, returns: self.returns });
            }
            _ => {}
        }
        None
    }
}

/// Waits until the own Node is there. `report` is given what is missing, whenever that changes.
pub(super) async fn wait(own: &mut state::Receiver<Own>, name: &str, report: impl Fn(&str)) -> Option<Arc<OwnNode>> {
    let mut reported = String::new();
    loop {
        let Own { node, listed, lost, .. } = own.borrow_and_update().clone();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: i64) -> Event<String, Result<Box<OwnNode>, String>> {
        let node = serde_json::json!({"metadata": {"name": "one", "resourceVersion": revision.to_string()}});
        let value = serde_json::from_value(node).map(Box::new).map_err(|error| error.to_string());
        Event::Put { key: "one".to_owned(), value, revision }
    }

    #[test]
    fn node_of_a_restored_store_is_no_older_than_what_was_written_before() {
        let mut following = Following::default();
        let mut own = |events: Vec<Event<String, Result<Box<OwnNode>, String>>>| {
            events.into_iter().filter_map(|event| following.take_in(event)).last().unwrap()
        };
        let written = |revision, returns| Written { revision, returns };
        let first = own(vec![Event::Reset, put(900), Event::Complete]);
        assert_eq!(first.since(written(1200, first.returns)), None, "what was written is still to come");
        let seen = own(vec![put(1200), Event::Commit, put(1201), Event::Commit]);
        assert_eq!(seen.since(written(1200, first.returns)).map(|own| own.node.revision()), Some(1201));
        // A backup is restored, and everybody lists anew.
        let back = own(vec![Event::Reset, put(900), Event::Complete]);
        assert_eq!(back.since(written(1200, seen.returns)).map(|own| own.node.revision()), Some(900));
        // What is written into the restored store is to be waited for as before.
        assert_eq!(back.since(written(1100, back.returns)), None);
        let again = own(vec![Event::Reset, put(1100), Event::Complete]);
        assert_eq!((again.returns, again.since(written(1100, back.returns))), (back.returns, None));
    }

    #[test]
    fn node_that_cannot_be_read_says_what_it_said_before() {
        let mut following = Following::default();
        let mut own = |event| following.take_in(event);
        assert!(own(put(5)).is_none(), "not at its end");
        assert!(own(Event::Complete).unwrap().node.is_some());
        own(Event::Reset);
        own(Event::Put { key: "one".to_owned(), value: Err("torn".to_owned()), revision: 6 });
        assert_eq!(own(Event::Complete).unwrap().node.map(|own| own.node.revision()), Some(5));
        own(Event::Delete { key: "one".to_owned(), revision: 7 });
        assert_eq!(own(Event::Commit).unwrap().node, None);
    }
}
