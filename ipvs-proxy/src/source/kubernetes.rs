//! Services, EndpointSlices and the own Node of the Kubernetes API, as one stream.
//!
//! Invariants: the server selects as kube-proxy has it select: no Services of another proxy's, no slices of headless ones; of Nodes the
//! own one. A server without EndpointSlices (1.16 and 1.17) has Endpoints, which are read as slices. Until each kind has been listed once nothing
//! ends: a Service without its slices would refuse the clients that it has been serving.

use std::collections::{BTreeMap, VecDeque};

use cluster::heartbeat::Progress;
use cluster::kubernetes::{Client, Collection, watch_first, watch_read};
use cluster::{Event, Source};
use serde_json::Value;

use super::{Reading, Update, endpoints, parsed};
use crate::object::ObjectName;
use crate::object::key::Kind;
use crate::object::node::Node;
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;

/// kube-proxy's selection of Services (cmd/kube-proxy/app/server.go), but for those with the label of headless ones, whose clients are
/// refused. The label says nothing on a slice: whoever writes one copies the Service's labels, and may be late to take one back.
const SERVICES: &str = "!service.kubernetes.io/service-proxy-name";

/// Its selection of their endpoints.
const ENDPOINTS: &str = "!service.kubernetes.io/headless";

/// The label by which slices of v1beta1 name the node of an endpoint.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// An EndpointSlice, or as many as the subsets of Endpoints make.
type Parts = Vec<Reading<EndpointSlice>>;

/// The stream; see the module's text.
#[derive(Debug)]
pub(crate) struct Watches {
    services: Source<String, Reading<Service>>,
    slices: Source<String, Parts>,
    node: Source<String, Reading<Node>>,
    joined: Joined,
}

/// What three watches say, as one.
#[derive(Debug, Default)]
struct Joined {
    /// Kinds that have been listed, before all were.
    listed: Vec<Kind>,
    all_listed: bool,
    /// Endpoints that are several slices, and how many.
    several: BTreeMap<String, usize>,
    waiting: VecDeque<Update>,
}

impl Watches {
    /// Begins to watch, on the node of this name.
    pub(super) fn begin(client: &Client, node: &str, seed: u64) -> Self {
        let selected =
            |group: &str, version: &str, plural: &str| Collection::new(group, version, plural).labels(ENDPOINTS);
        let services = Collection::new("", "v1", "services").labels(SERVICES);
        let services = watch_read(client, services, seed, service);
        let slices = selected("discovery.k8s.io", "v1", "endpointslices");
        let earlier = selected("discovery.k8s.io", "v1beta1", "endpointslices");
        let endpoints = selected("", "v1", "endpoints");
        let slices =
            watch_first(client, (slices, slice), vec![(earlier, earlier_slice), (endpoints, of_endpoints)], seed ^ 1);
        let own = Collection::new("", "v1", "nodes").field(&format!("metadata.name={node}"));
        let node = watch_read(client, own, seed ^ 2, node_of);
        Self { services, slices, node, joined: Joined::default() }
    }

    /// Whether the loops make progress, by their names.
    pub(super) fn progress(&self) -> Vec<(&'static str, Progress)> {
        vec![
            ("source of Services", self.services.progress()),
            ("source of EndpointSlices", self.slices.progress()),
            ("source of the Node", self.node.progress()),
        ]
    }

    /// The next update. Cancel-safe. `None` when the runtime ends.
    pub(super) async fn next(&mut self) -> Option<Update> {
        loop {
            if let Some(update) = self.joined.waiting.pop_front() {
                return Some(update);
            }
            tokio::select! {
                event = self.services.next() => self.joined.take_service(event?),
                event = self.slices.next() => self.joined.take_slice(event?),
                event = self.node.next() => self.joined.take_node(event?),
            }
        }
    }
}

impl Joined {
    fn take_service(&mut self, event: Event<String, Reading<Service>>) {
        let event = event.map(|key| name_of(&key), |_, value| value);
        if self.may_pass(Kind::Service, &event) {
            self.waiting.push_back(Update::Service(event));
        }
    }

    fn take_node(&mut self, event: Event<String, Reading<Node>>) {
        let event = event.map(|key| name_of(&key), |_, value| value);
        if self.may_pass(Kind::Node, &event) {
            self.waiting.push_back(Update::Node(event));
        }
    }

    fn take_slice(&mut self, event: Event<String, Parts>) {
        if !self.may_pass(Kind::EndpointSlice, &event) {
            return;
        }
        match event {
            Event::Put { key, value, revision } => {
                let count = value.len();
                let before =
                    if count > 1 { self.several.insert(key.clone(), count) } else { self.several.remove(&key) };
                for (number, value) in value.into_iter().enumerate() {
                    self.waiting.push_back(Update::Slice(Event::Put { key: part(&key, number), value, revision }));
                }
                self.drop_parts(&key, count..before.unwrap_or(1), revision);
            }
            Event::Delete { key, revision } => {
                let count = self.several.remove(&key).unwrap_or(1);
                self.drop_parts(&key, 0..count, revision);
            }
            keyless => {
                if matches!(keyless, Event::Reset) {
                    self.several.clear();
                }
                self.waiting.extend(keyless.keyless().map(Update::Slice));
            }
        }
    }

    fn drop_parts(&mut self, key: &str, numbers: std::ops::Range<usize>, revision: i64) {
        let gone = numbers.map(|number| Update::Slice(Event::Delete { key: part(key, number), revision }));
        self.waiting.extend(gone);
    }

    /// Whether an event is passed on now. The ends of the first listings come together, with the last one.
    fn may_pass<K, V>(&mut self, kind: Kind, event: &Event<K, V>) -> bool {
        if self.all_listed {
            return true;
        }
        match event {
            Event::Commit => false,
            Event::Complete => {
                self.listed.push(kind);
                self.all_listed = Kind::ALL.iter().all(|kind| self.listed.contains(kind));
                if self.all_listed {
                    self.waiting.push_back(Update::Service(Event::Complete));
                    self.waiting.push_back(Update::Slice(Event::Complete));
                    self.waiting.push_back(Update::Node(Event::Complete));
                }
                false
            }
            Event::Reset => {
                self.listed.retain(|listed| *listed != kind);
                true
            }
            _ => true,
        }
    }
}

/// The name in a key of the API.
fn name_of(key: &str) -> ObjectName {
    match key.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::of_cluster(key),
    }
}

/// The name of a part of an object; no object of the API has a colon in its name.
fn part(key: &str, number: usize) -> ObjectName {
    if number == 0 { name_of(key) } else { name_of(&format!("{key}:{number}")) }
}

/// An object with its kind, which items of a list do not carry.
fn object(kind: Kind, text: &str) -> Result<Value, String> {
    let mut object: Value = serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))?;
    if let Some(fields) = object.as_object_mut() {
        fields.entry("kind").or_insert_with(|| kind.name().into());
    }
    Ok(object)
}

fn service(key: &str, text: &str) -> Reading<Service> {
    parsed(&name_of(key), &object(Kind::Service, text)?, Service::from_json, |service| &mut service.name)
}

fn node_of(key: &str, text: &str) -> Reading<Node> {
    parsed(&name_of(key), &object(Kind::Node, text)?, Node::from_json, |node| &mut node.name)
}

fn slice(key: &str, text: &str) -> Parts {
    vec![object(Kind::EndpointSlice, text).and_then(|object| slice_of(&name_of(key), &object))]
}

/// A slice of v1beta1, whose endpoints have a topology where those of v1 have the name of their node.
fn earlier_slice(key: &str, text: &str) -> Parts {
    let read = object(Kind::EndpointSlice, text).and_then(|mut object| {
        let endpoints = object.get_mut("endpoints").and_then(Value::as_array_mut);
        for endpoint in endpoints.into_iter().flatten().filter_map(Value::as_object_mut) {
            let node = endpoint.get("topology").and_then(|topology| topology.get(HOSTNAME)).cloned();
            if let Some(node) = node {
                endpoint.entry("nodeName").or_insert(node);
            }
        }
        slice_of(&name_of(key), &object)
    });
    vec![read]
}

fn slice_of(name: &ObjectName, object: &Value) -> Reading<EndpointSlice> {
    parsed(name, object, EndpointSlice::from_json, |slice| &mut slice.name)
}

fn of_endpoints(key: &str, text: &str) -> Parts {
    let object: Value = match serde_json::from_str(text) {
        Ok(object) => object,
        Err(error) => return vec![Err(format!("not valid JSON: {error}"))],
    };
    let named = |(number, mut slice): (usize, Value)| {
        let name = part(key, number);
        // It is read under the name that it has here.
        if let Some(metadata) = slice.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("name".to_owned(), name_of(key).name().into());
        }
        EndpointSlice::from_json(&slice)
            .map(|slice| Box::new(EndpointSlice { name, ..slice }))
            .map_err(|problem| problem.to_string())
    };
    endpoints::slices(&object).into_iter().enumerate().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"clusterIP":"192.168.0.10"}}"#;

    fn put<V>(key: &str, value: V) -> Event<String, V> {
        Event::Put { key: key.to_owned(), value, revision: 7 }
    }

    fn kinds(joined: &mut Joined) -> Vec<&'static str> {
        let named = |update: Update| match update {
            Update::Service(Event::Complete) => "services complete",
            Update::Slice(Event::Complete) => "slices complete",
            Update::Node(Event::Complete) => "node complete",
            Update::Service(Event::Put { value: Ok(_), .. }) => "a Service",
            Update::Slice(Event::Put { value: Ok(_), .. }) => "a slice",
            Update::Slice(Event::Delete { .. }) => "a slice gone",
            Update::Service(Event::Commit) | Update::Slice(Event::Commit) | Update::Node(Event::Commit) => "commit",
            Update::Service(Event::Reset) | Update::Slice(Event::Reset) | Update::Node(Event::Reset) => "reset",
            other => panic!("{other:?}"),
        };
        joined.waiting.drain(..).map(named).collect()
    }

    #[test]
    fn nothing_ends_before_each_kind_has_been_listed_once() {
        let mut joined = Joined::default();
        joined.take_service(Event::Reset);
        joined.take_service(put("shop/web", service("shop/web", WEB)));
        joined.take_service(Event::Complete);
        joined.take_service(put("shop/web", service("shop/web", WEB)));
        joined.take_service(Event::Commit);
        joined.take_node(Event::Complete);
        // The slices are listed twice: what broke off was not whole.
        joined.take_node(Event::Reset);
        joined.take_slice(Event::Complete);
        assert_eq!(kinds(&mut joined), ["reset", "a Service", "a Service", "reset"]);
        joined.take_node(Event::Complete);
        assert_eq!(kinds(&mut joined), ["services complete", "slices complete", "node complete"]);
        joined.take_service(Event::Commit);
        joined.take_slice(Event::Reset);
        joined.take_slice(Event::Complete);
        assert_eq!(kinds(&mut joined), ["commit", "reset", "slices complete"], "each by itself from then on");
    }

    #[test]
    fn items_of_a_list_need_no_kind_and_are_read_under_their_key() {
        assert_eq!(service("shop/web", WEB).unwrap().name, ObjectName::new("shop", "web"));
        assert!(service("shop/api", WEB).unwrap_err().contains("the namespace and name of its key"));
        assert!(service("shop/web", "{").unwrap_err().contains("not valid JSON"));
        assert_eq!(node_of("n1", r#"{"metadata":{"name":"n1"}}"#).unwrap().name, ObjectName::of_cluster("n1"));
    }

    #[test]
    fn an_earlier_slice_names_the_node_in_its_topology() {
        let text = r#"{"metadata":{"name":"web-1","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
            "endpoints":[{"addresses":["172.7.21.2"],"topology":{"kubernetes.io/hostname":"n1"}}]}"#;
        let slice = earlier_slice("shop/web-1", text).remove(0).unwrap();
        assert_eq!(slice.endpoints[0].topology.node.as_deref(), Some("n1"));
    }

    #[test]
    fn endpoints_with_fewer_subsets_than_before_lose_the_slices_of_the_others() {
        let endpoints = |ports: &[u16]| {
            let subset = |port| format!(r#"{{"addresses":[{{"ip":"172.7.21.2"}}],"ports":[{{"port":{port}}}]}}"#);
            let subsets: Vec<_> = ports.iter().map(subset).collect();
            let text =
                format!(r#"{{"metadata":{{"name":"web","namespace":"shop"}},"subsets":[{}]}}"#, subsets.join(","));
            of_endpoints("shop/web", &text)
        };
        let mut joined = Joined { all_listed: true, ..Joined::default() };
        joined.take_slice(put("shop/web", endpoints(&[80, 81, 82])));
        let names: Vec<_> =
            joined.waiting.iter().filter_map(|update| Some(update.object()?.name.to_string())).collect();
        assert_eq!(names, ["shop/web", "shop/web:1", "shop/web:2"]);
        joined.waiting.clear();
        joined.take_slice(put("shop/web", endpoints(&[80])));
        assert_eq!(kinds(&mut joined), ["a slice", "a slice gone", "a slice gone"]);
    }

    /// Were these deletions, three Services that lose their Pods together would be taken for a source that shows nothing.
    #[test]
    fn endpoints_without_subsets_are_an_empty_slice_and_nothing_that_was_deleted() {
        let mut joined = Joined { all_listed: true, ..Joined::default() };
        for text in [
            r#"{"metadata":{"name":"web","namespace":"shop"}}"#,
            r#"{"metadata":{"name":"web","namespace":"shop"},"subsets":[]}"#,
            r#"{"metadata":{"name":"web","namespace":"shop"},"subsets":[{"ports":[{"port":80}]}]}"#,
        ] {
            let parts = of_endpoints("shop/web", text);
            let slice = parts[0].as_ref().unwrap();
            assert_eq!((slice.service.to_string().as_str(), slice.endpoints.len()), ("shop/web", 0));
            joined.take_slice(put("shop/web", parts));
            assert_eq!(kinds(&mut joined), ["a slice"]);
        }
        joined.take_slice(Event::Delete { key: "shop/web".to_owned(), revision: 2 });
        assert_eq!(kinds(&mut joined), ["a slice gone"]);
    }
}
