//! Where Services, EndpointSlices and the own Node come from: the Kubernetes API, etcd or a directory of manifests, as one stream of readings.
//!
//! Invariant: an object that cannot be read stays in the stream, as the reason why; nobody further on has to know which
//! source it came from. Objects of other kinds in a directory are none of ours; any other key below etcd's prefix
//! is junk and reported as such. Other Nodes than the own one are left out unread: each beats its heart every few minutes.

pub(crate) mod doubt;
mod endpoints;
mod kubernetes;
pub(crate) mod view;

use std::convert::Infallible;
use std::path::PathBuf;

use cluster::etcd::{Client, Prefix};
use cluster::heartbeat::Progress;
use cluster::{Event, Problem, directory, etcd};
use serde_json::Value;

use self::kubernetes::Watches;
use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::node::Node;
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;

/// An object, or why it cannot be read.
pub(crate) type Reading<T> = Result<Box<T>, String>;

/// What a source reports. Each kind of object has listings of its own; a source of all kinds lists them together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Update {
    /// Of Services.
    Service(Event<ObjectName, Reading<Service>>),
    /// Of EndpointSlices.
    Slice(Event<ObjectName, Reading<EndpointSlice>>),
    /// Of Nodes.
    Node(Event<ObjectName, Reading<Node>>),
    /// Of keys that are no objects.
    Junk(Event<String, ()>),
    /// Of all kinds together: what is about no single object.
    Every(Event<Infallible, Infallible>),
}

impl Update {
    /// True at the end of what belongs together.
    #[must_use]
    pub(crate) const fn is_end(&self) -> bool {
        match self {
            Self::Service(event) => event.is_end(),
            Self::Slice(event) => event.is_end(),
            Self::Node(event) => event.is_end(),
            Self::Junk(event) => event.is_end(),
            Self::Every(event) => event.is_end(),
        }
    }

    /// The object that it is about, if it is about one.
    #[must_use]
    pub(crate) fn object(&self) -> Option<ObjectKey> {
        let (kind, name) = match self {
            Self::Service(event) => (Kind::Service, event.key()),
            Self::Slice(event) => (Kind::EndpointSlice, event.key()),
            Self::Node(event) => (Kind::Node, event.key()),
            Self::Junk(_) | Self::Every(_) => return None,
        };
        name.map(|name| ObjectKey { kind, name: name.clone() })
    }

    /// The kinds of which a change is all there with this.
    #[must_use]
    pub(crate) const fn ends(&self) -> &'static [Kind] {
        match self {
            Self::Service(Event::Commit | Event::Complete) => &[Kind::Service],
            Self::Slice(Event::Commit | Event::Complete) => &[Kind::EndpointSlice],
            Self::Node(Event::Commit | Event::Complete) => &[Kind::Node],
            Self::Every(Event::Commit | Event::Complete) => &Kind::ALL,
            _ => &[],
        }
    }

    /// The kinds of which a listing is whole with this.
    #[must_use]
    pub(crate) const fn completes(&self) -> &'static [Kind] {
        match self {
            Self::Service(Event::Complete) => &[Kind::Service],
            Self::Slice(Event::Complete) => &[Kind::EndpointSlice],
            Self::Node(Event::Complete) => &[Kind::Node],
            Self::Every(Event::Complete) => &Kind::ALL,
            _ => &[],
        }
    }
}

/// Where to listen.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Below a prefix in etcd.
    Etcd(Client, Prefix),
    /// The manifests of a directory.
    Directory(PathBuf),
    /// The API server.
    Kubernetes(cluster::kubernetes::Client),
}

impl Place {
    /// This host has another address: what was connected from the earlier one may be silent for ever.
    pub(crate) fn dial_anew(&self) {
        match self {
            Self::Etcd(client, _) => client.dial_anew(),
            Self::Kubernetes(client) => client.dial_anew(),
            Self::Directory(_) => {}
        }
    }
}

/// The stream; see the module's text.
#[derive(Debug)]
pub(crate) enum Source {
    /// Of a store with keys.
    Keyed(Keyed),
    /// Of the Kubernetes API.
    Kubernetes(Box<Watches>),
}

/// Objects below a prefix, or in a directory.
#[derive(Debug)]
pub(crate) struct Keyed {
    events: cluster::Source,
    read_key: fn(&str) -> Option<ObjectKey>,
    /// The own Node's name.
    node: String,
    /// Keys that are no objects are reported as malformed (etcd) or read over (a directory).
    junk: bool,
}

impl Source {
    /// Begins to listen, on the node of this name; `seed` spreads the retries of many nodes. Must be called inside a tokio runtime.
    #[must_use]
    pub(crate) fn listen(place: &Place, node: &str, seed: u64) -> Self {
        let own = node.to_owned();
        match place {
            Place::Etcd(client, prefix) => {
                let events = etcd::watch(client, prefix, seed);
                Self::Keyed(Keyed { events, read_key: ObjectKey::from_etcd, node: own, junk: true })
            }
            Place::Directory(path) => {
                let events = directory::watch(path, &Kind::IN_MANIFESTS, seed);
                Self::Keyed(Keyed { events, read_key: ObjectKey::from_manifest, node: own, junk: false })
            }
            Place::Kubernetes(client) => Self::Kubernetes(Box::new(Watches::begin(client, node, seed))),
        }
    }

    /// Whether the loops behind it make progress, by their names.
    pub(crate) fn progress(&self) -> Vec<(&'static str, Progress)> {
        match self {
            Self::Keyed(keyed) => vec![("source", keyed.events.progress())],
            Self::Kubernetes(watches) => watches.progress(),
        }
    }

    /// The next update. Cancel-safe. `None` when the runtime ends.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Keyed(keyed) => keyed.next().await,
            Self::Kubernetes(watches) => watches.next().await,
        }
    }
}

impl Keyed {
    async fn next(&mut self) -> Option<Update> {
        loop {
            let event = self.events.next().await?;
            let key = event.key().and_then(|key| (self.read_key)(key));
            if key.is_some_and(|key| is_another_node(&key, &self.node)) {
                continue;
            }
            if let Some(update) = update(event, self.read_key, self.junk) {
                return Some(update);
            }
        }
    }
}

/// True for a Node that is not this one.
fn is_another_node(key: &ObjectKey, own: &str) -> bool {
    key.kind == Kind::Node && key.name.name() != own
}

/// What an event of a source with keys below a prefix means; nothing when its key is junk and `junk` is not asked for.
pub(crate) fn update(event: Event, read_key: fn(&str) -> Option<ObjectKey>, junk: bool) -> Option<Update> {
    let Some(key) = event.key() else { return event.keyless().map(Update::Every) };
    Some(match read_key(key) {
        Some(ObjectKey { kind: Kind::Service, name }) => {
            Update::Service(event.map(|_| name, |name, json| read_service(name, &json)))
        }
        Some(ObjectKey { kind: Kind::EndpointSlice, name }) => {
            Update::Slice(event.map(|_| name, |name, json| read_slice(name, &json)))
        }
        Some(ObjectKey { kind: Kind::Node, name }) => {
            Update::Node(event.map(|_| name, |name, json| read_node(name, &json)))
        }
        None if junk => Update::Junk(event.map(|key| key, |_, _| ())),
        None => return None,
    })
}

/// Why a key below etcd's prefix is junk.
pub(crate) const JUNK: &str =
    "is no key of ours; accepted: services/NAMESPACE/NAME, endpointslices/NAMESPACE/NAME and nodes/NAME";

/// Reads the Service stored under `name`.
///
/// # Errors
/// What is wrong with it, as text: not JSON, a malformed field, or another name than its key's.
pub(crate) fn read_service(name: &ObjectName, json: &[u8]) -> Reading<Service> {
    read(name, json, Service::from_json, |service| &mut service.name)
}

/// Reads the EndpointSlice stored under `name`.
///
/// # Errors
/// As [`read_service`].
pub(crate) fn read_slice(name: &ObjectName, json: &[u8]) -> Reading<EndpointSlice> {
    read(name, json, EndpointSlice::from_json, |slice| &mut slice.name)
}

/// Reads the Node stored under `name`.
///
/// # Errors
/// As [`read_service`].
pub(crate) fn read_node(name: &ObjectName, json: &[u8]) -> Reading<Node> {
    read(name, json, Node::from_json, |node| &mut node.name)
}

fn read<T>(
    name: &ObjectName,
    json: &[u8],
    parse: fn(&Value) -> Result<T, Problem>,
    name_of: fn(&mut T) -> &mut ObjectName,
) -> Reading<T> {
    let json: Value = serde_json::from_slice(json).map_err(|error| format!("not valid JSON: {error}"))?;
    parsed(name, &json, parse, name_of)
}

fn parsed<T>(
    name: &ObjectName,
    json: &Value,
    parse: fn(&Value) -> Result<T, Problem>,
    name_of: fn(&mut T) -> &mut ObjectName,
) -> Reading<T> {
    let mut object = parse(json).map_err(|problem| problem.to_string())?;
    let own = name_of(&mut object);
    if own != name {
        let accepted = "the namespace and name of its key";
        return Err(Problem::new("metadata", own.to_string(), accepted).to_string());
    }
    // One text for both.
    name.clone_into(own);
    Ok(Box::new(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Event {
        Event::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), revision: 7 }
    }

    const WEB: &str = r#"{"kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"192.168.0.10"}}"#;

    #[test]
    fn an_object_is_read_under_its_key_whatever_the_source_calls_it() {
        let etcd = update(put("services/default/web", WEB), ObjectKey::from_etcd, true);
        let directory = update(put("Service/default/web", WEB), ObjectKey::from_manifest, false);
        assert_eq!(etcd, directory);
        let web = ObjectName::new("default", "web");
        assert!(matches!(etcd, Some(Update::Service(Event::Put { key, value: Ok(_), .. })) if key == web));
    }

    #[test]
    fn a_malformed_object_stays_in_the_stream_with_its_reason() {
        for (value, reason) in [
            ("{", "not valid JSON"),
            (r#"{"kind":"Service","metadata":{"name":"web"}}"#, "spec: missing"),
            (
                &WEB.replace("\"web\"", "\"other\""),
                "metadata: default/other; accepted: the namespace and name of its key",
            ),
        ] {
            match update(put("services/default/web", value), ObjectKey::from_etcd, true) {
                Some(Update::Service(Event::Put { value: Err(text), .. })) => assert!(text.contains(reason), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn junk_keys_are_reported_in_etcd_and_read_over_in_a_directory() {
        let reported = update(put("junk", "x"), ObjectKey::from_etcd, true);
        assert!(matches!(reported, Some(Update::Junk(Event::Put { key, .. })) if key == "junk"));
        let gone = Event::Delete { key: "junk".to_owned(), revision: 8 };
        let gone = update(gone, ObjectKey::from_etcd, true);
        assert!(matches!(gone, Some(Update::Junk(Event::Delete { key, .. })) if key == "junk"));
        assert_eq!(update(put("Deployment/default/web", "{}"), ObjectKey::from_manifest, false), None);
    }

    #[test]
    fn of_nodes_only_the_own_one_is_read() {
        let node = r#"{"kind":"Node","metadata":{"name":"n1"}}"#;
        let own = update(put("nodes/n1", node), ObjectKey::from_etcd, true);
        assert_eq!(own, update(put("Node/n1", node), ObjectKey::from_manifest, false));
        assert!(matches!(own, Some(Update::Node(Event::Put { value: Ok(_), .. }))), "{own:?}");
        for (key, left_out) in [("nodes/n1", false), ("nodes/n2", true), ("services/default/n2", false)] {
            assert_eq!(is_another_node(&ObjectKey::from_etcd(key).unwrap(), "n1"), left_out, "{key}");
        }
    }

    #[test]
    fn a_listing_of_both_kinds_is_whole_for_both_and_one_of_a_kind_for_that() {
        let every = update(Event::Complete, ObjectKey::from_etcd, true).unwrap();
        assert_eq!((every.completes(), every.is_end()), (&Kind::ALL[..], true));
        assert_eq!(Update::Slice(Event::Complete).completes(), [Kind::EndpointSlice]);
        assert!(Update::Service(Event::Commit).is_end() && Update::Service(Event::Commit).completes().is_empty());
        assert!(!update(Event::Reset, ObjectKey::from_etcd, true).unwrap().is_end());
    }
}
