//! `Fold`: the events of Nodes as events of leases.
//!
//! Invariants: a change that says nothing new of a lease is no event at all; of Nodes with one podCIDR the oldest has the lease, the
//! others are named with it; a Node that cannot be decoded keeps what it said before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cluster::Event;

use crate::format::lease::{Lease, LeaseAttrs, StoredLease, SubnetKey};
use crate::format::node::{AnnotationPrefix, Families, Node};
use crate::source::LeaseEvent;

/// What a watch says of Nodes, each by its name.
pub(super) type NodeEvent = Event<String, Result<Box<Node>, String>>;

/// What of the Nodes is read, and what the own one shall say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scope {
    /// The families that the network has.
    pub(super) families: Families,
    /// Name of the own Node.
    pub(super) own: String,
    /// What it shall say, before an operator's annotations.
    pub(super) announced: Option<LeaseAttrs>,
}

impl Scope {
    /// The lease that a Node shows; `None` for one that no subnet manager has marked. What this node announces is its own
    /// whatever address an operator's annotations give to the others.
    pub(super) fn lease(&self, prefix: &AnnotationPrefix, node: &Node) -> Option<Result<Lease, String>> {
        let mut shown = prefix.lease(node, self.families)?;
        if let (Ok(lease), Some(announced)) = (&mut shown, &self.announced)
            && node.metadata.name == self.own
            && prefix.differing(node, announced).is_empty()
        {
            let key = lease.key;
            lease.attrs.public_ips = announced.public_ips.map(|family, own| own.filter(|_| key.get(family).is_some()));
        }
        Some(shown)
    }

    /// True when everything that was read with `before` reads the same.
    pub(super) fn reads_as(&self, before: &Self) -> bool {
        let addresses = |scope: &Self| scope.announced.as_ref().map(|attrs| attrs.public_ips);
        self.families == before.families && addresses(self) == addresses(before)
    }
}

/// The Nodes, as far as leases go.
#[derive(Debug)]
pub(super) struct Fold {
    prefix: AnnotationPrefix,
    scope: Scope,
    /// The leases that Nodes show, by the Nodes' names.
    leases: BTreeMap<Arc<str>, Arc<StoredLease>>,
    /// Which Nodes show a lease of a key, the one that has it first.
    holders: BTreeMap<SubnetKey, Vec<Arc<str>>>,
    /// Nodes that are reported as invalid.
    invalid: BTreeSet<Arc<str>>,
    /// Nodes that the running listing has shown.
    listed: Option<BTreeSet<Arc<str>>>,
    /// Something was said since the last end.
    open: bool,
}

impl Fold {
    pub(super) fn new(prefix: AnnotationPrefix, scope: Scope) -> Self {
        Self {
            prefix,
            scope,
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            invalid: BTreeSet::new(),
            listed: None,
            open: false,
        }
    }

    /// Reads with `scope` from now on; true when what was read before reads differently.
    pub(super) fn set_scope(&mut self, scope: &Scope) -> bool {
        let differs = !scope.reads_as(&self.scope);
        self.scope.clone_from(scope);
        differs
    }

    /// How many Nodes show a lease.
    pub(super) fn nodes(&self) -> usize {
        self.leases.len()
    }

    /// What an event of a Node is for the leases, in order.
    pub(super) fn apply(&mut self, event: NodeEvent) -> Vec<LeaseEvent> {
        let mut events = Vec::new();
        match event {
            Event::Reset => {
                self.listed = Some(BTreeSet::new());
                events.push(LeaseEvent::Reset);
            }
            Event::Origin(origin) => events.push(LeaseEvent::Origin(origin)),
            Event::Put { key, value: Ok(node), revision } => self.put(&key, &node, revision, &mut events),
            Event::Put { key, value: Err(reason), revision } => self.keep(&key, reason, revision, &mut events),
            Event::Delete { key, revision } => self.remove(&Arc::from(key), revision, &mut events),
            Event::Complete => self.complete(&mut events),
            Event::Lost(error) => events.push(LeaseEvent::Lost(Box::new(error))),
            Event::Commit if self.open => events.push(LeaseEvent::Commit),
            Event::Commit => {}
            Event::Invalid { source, reason, .. } => self.refuse(&source.into(), reason, 0, &mut events),
            Event::Valid { source } => self.accept(&source.into(), &mut events),
            Event::Notes { .. } => {}
        }
        self.open = match events.last() {
            Some(LeaseEvent::Commit | LeaseEvent::Complete) => false,
            last => self.open || last.is_some(),
        };
        events
    }

    fn put(&mut self, name: &str, node: &Node, revision: i64, events: &mut Vec<LeaseEvent>) {
        let name: Arc<str> = name.into();
        let shown = self.scope.lease(&self.prefix, node);
        if let Some(listed) = &mut self.listed {
            listed.insert(Arc::clone(&name));
        }
        let lease = match shown {
            None => return self.remove(&name, revision, events),
            Some(Err(reason)) => {
                self.release(&name, revision, events);
                return self.refuse(&name, reason, revision, events);
            }
            Some(Ok(lease)) => lease,
        };
        let created = node.created();
        let known = self.leases.get(&name).filter(|known| known.lease == lease && known.created == created).cloned();
        match known {
            Some(known) if self.listed.is_some() => self.show(known.lease.key, events),
            Some(_) => {}
            None => {
                let key = lease.key;
                if self.leases.get(&name).is_some_and(|before| before.lease.key != key) {
                    self.release(&name, revision, events);
                }
                // The state of the store that the Node is in, where that is a number.
                let revision = node.revision().max(revision);
                let stored = StoredLease { lease, created, revision, token: None };
                self.leases.insert(Arc::clone(&name), Arc::new(stored));
                self.rank(key, Some(&name));
                self.show(key, events);
            }
        }
        let holds = self.leases.get(&name).and_then(|stored| self.holders.get(&stored.lease.key)?.first());
        if holds == Some(&name) {
            self.accept(&name, events);
        }
    }

    /// Orders the Nodes of one key, of which `new` is perhaps not one yet.
    fn rank(&mut self, key: SubnetKey, new: Option<&Arc<str>>) {
        let holders = self.holders.entry(key).or_default();
        if let Some(name) = new.filter(|name| !holders.contains(name)) {
            holders.push(Arc::clone(name));
        }
        let age = |name: &Arc<str>| (self.leases.get(name).map(|stored| stored.created), Arc::clone(name));
        holders.sort_by_key(age);
    }

    /// Reports the lease of `key` as the Node shows it that has it, and the others as invalid.
    fn show(&mut self, key: SubnetKey, events: &mut Vec<LeaseEvent>) {
        let names = self.holders.get(&key).cloned().unwrap_or_default();
        let Some((first, others)) = names.split_first() else { return };
        events.extend(self.leases.get(first).map(|stored| LeaseEvent::Put(Arc::clone(stored))));
        self.accept(first, events);
        for name in others {
            let revision = self.leases.get(name).map_or(0, |stored| stored.revision);
            let reason = format!("its podCIDR {} is that of Node {first} too, which is older", key.list());
            self.refuse(name, reason, revision, events);
        }
    }

    /// A Node that cannot be decoded.
    fn keep(&mut self, name: &str, reason: String, revision: i64, events: &mut Vec<LeaseEvent>) {
        let name: Arc<str> = name.into();
        if let Some(listed) = &mut self.listed {
            listed.insert(Arc::clone(&name));
            if let Some(key) = self.leases.get(&name).map(|stored| stored.lease.key) {
                self.show(key, events);
            }
        }
        self.refuse(&name, reason, revision, events);
    }

    fn remove(&mut self, name: &Arc<str>, revision: i64, events: &mut Vec<LeaseEvent>) {
        self.release(name, revision, events);
        self.accept(name, events);
    }

    /// A Node shows no lease any more; another one with its key may have it now.
    fn release(&mut self, name: &Arc<str>, revision: i64, events: &mut Vec<LeaseEvent>) {
        let Some(stored) = self.leases.remove(name) else { return };
        let key = stored.lease.key;
        let Some(holders) = self.holders.get_mut(&key) else { return };
        let had_it = holders.first() == Some(name);
        holders.retain(|other| other != name);
        if holders.is_empty() {
            self.holders.remove(&key);
            events.push(LeaseEvent::Delete(key, revision));
        } else if had_it {
            self.show(key, events);
        }
    }

    fn complete(&mut self, events: &mut Vec<LeaseEvent>) {
        let listed = self.listed.take().unwrap_or_default();
        let gone: Vec<Arc<str>> = self.leases.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            self.remove(&name, 0, events);
        }
        self.invalid.retain(|name| listed.contains(name));
        // What a listing did not show is gone by its end; a deletion within it would say the same twice.
        events.retain(|event| !matches!(event, LeaseEvent::Delete(..)));
        events.push(LeaseEvent::Complete);
    }

    fn refuse(&mut self, name: &Arc<str>, reason: String, revision: i64, events: &mut Vec<LeaseEvent>) {
        self.invalid.insert(Arc::clone(name));
        events.push(LeaseEvent::Invalid { key: label(name), reason, revision });
    }

    fn accept(&mut self, name: &Arc<str>, events: &mut Vec<LeaseEvent>) {
        if self.invalid.remove(name) {
            events.push(LeaseEvent::Removed(label(name)));
        }
    }
}

/// What an operator reads; no key of a lease.
fn label(name: &str) -> String {
    format!("Node {name}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::Origin;
    use netstate::family::PerFamily;
    use serde_json::json;

    use super::*;
    use crate::source::view::View;

    fn fold() -> Fold {
        let scope = Scope { families: PerFamily::new(true, false), ..Scope::default() };
        Fold::new("flannel.alpha.coreos.com".parse().unwrap(), scope)
    }

    /// A Node made in year `2000 + made`, as it is in `revision`.
    fn node(name: &str, subnet: u8, made: u8, revision: i64) -> NodeEvent {
        let prefix = |name: &str| format!("flannel.alpha.coreos.com/{name}");
        let annotations = json!({prefix("kube-subnet-manager"): "true", prefix("backend-type"): "host-gw",
            prefix("backend-data"): "null", prefix("public-ip"): format!("10.4.7.{subnet}")});
        changed(name, subnet, made, revision, annotations)
    }

    fn changed(name: &str, subnet: u8, made: u8, revision: i64, annotations: serde_json::Value) -> NodeEvent {
        let node = json!({
            "metadata": {"name": name, "creationTimestamp": format!("20{made:02}-01-01T00:00:00Z"),
                "resourceVersion": revision.to_string(), "annotations": annotations},
            "spec": {"podCIDR": format!("10.244.{subnet}.0/24")},
        });
        let value = serde_json::from_value(node).map(Box::new).map_err(|error| error.to_string());
        Event::Put { key: name.to_owned(), value, revision }
    }

    fn delete(name: &str, revision: i64) -> NodeEvent {
        Event::Delete { key: name.to_owned(), revision }
    }

    /// The events in a few words.
    fn texts(events: &[LeaseEvent]) -> Vec<String> {
        let text = |event: &LeaseEvent| match event {
            LeaseEvent::Put(stored) => {
                format!("put {} of {}", stored.lease.key, stored.lease.attrs.public_ips.list())
            }
            LeaseEvent::Delete(key, revision) => format!("delete {key} at {revision}"),
            LeaseEvent::Invalid { key, .. } => format!("invalid {key}"),
            LeaseEvent::Removed(key) => format!("valid {key}"),
            other => format!("{other:?}"),
        };
        events.iter().map(text).collect()
    }

    fn all(fold: &mut Fold, events: impl IntoIterator<Item = NodeEvent>) -> Vec<String> {
        events.into_iter().flat_map(|event| texts(&fold.apply(event))).collect()
    }

    #[test]
    fn a_heartbeat_is_no_event_at_all() {
        let mut fold = fold();
        let listing = [Event::Reset, Event::Origin(Origin::default()), node("a", 1, 1, 5), Event::Complete];
        assert_eq!(all(&mut fold, listing)[2], "put 10.244.1.0-24 of 10.4.7.1");
        let heartbeats = (6..600).flat_map(|revision| [node("a", 1, 1, revision), Event::Commit]);
        assert_eq!(all(&mut fold, heartbeats), <[String; 0]>::default());
        let twin = [node("a", 1, 2, 601), Event::Commit];
        assert_eq!(all(&mut fold, twin), ["put 10.244.1.0-24 of 10.4.7.1", "Commit"], "another Node of this name");
    }

    #[test]
    fn annotations_that_go_and_a_node_that_is_deleted_are_leases_that_end() {
        let mut fold = fold();
        all(&mut fold, [node("a", 1, 1, 5), node("b", 2, 1, 6)]);
        assert_eq!(
            all(&mut fold, [changed("a", 1, 1, 7, json!({})), Event::Commit]),
            ["delete 10.244.1.0-24 at 7", "Commit"]
        );
        assert_eq!(all(&mut fold, [changed("a", 1, 1, 8, json!({})), Event::Commit]), <[String; 0]>::default());
        assert_eq!(all(&mut fold, [delete("b", 9), Event::Commit]), ["delete 10.244.2.0-24 at 9", "Commit"]);
        assert_eq!(all(&mut fold, [delete("unknown", 10), Event::Commit]), <[String; 0]>::default());
        assert!(fold.leases.is_empty() && fold.holders.is_empty());
    }

    #[test]
    fn a_pod_cidr_that_changes_is_another_lease() {
        let mut fold = fold();
        all(&mut fold, [node("a", 1, 1, 5)]);
        let events = all(&mut fold, [node("a", 2, 2, 7), Event::Commit]);
        assert_eq!(events, ["delete 10.244.1.0-24 at 7", "put 10.244.2.0-24 of 10.4.7.2", "Commit"]);
    }

    #[test]
    fn of_two_nodes_with_one_pod_cidr_the_older_has_it_until_it_goes() {
        let mut fold = fold();
        assert_eq!(all(&mut fold, [node("young", 1, 9, 5)]), ["put 10.244.1.0-24 of 10.4.7.1"]);
        let events = all(&mut fold, [node("old", 1, 3, 6)]);
        assert_eq!(events, ["put 10.244.1.0-24 of 10.4.7.1", "invalid Node young"]);
        assert_eq!(all(&mut fold, [node("young", 1, 9, 7)]), <[String; 0]>::default());
        assert_eq!(all(&mut fold, [delete("old", 8)]), ["put 10.244.1.0-24 of 10.4.7.1", "valid Node young"]);
    }

    #[test]
    fn a_node_that_cannot_be_used_is_named_and_takes_nothing_from_others() {
        let mut fold = fold();
        let prefix = "flannel.alpha.coreos.com";
        let bad = json!({format!("{prefix}/kube-subnet-manager"): "true", format!("{prefix}/public-ip"): "10.4.7"});
        all(&mut fold, [Event::Reset, node("a", 1, 1, 5), node("b", 2, 1, 5), Event::Complete]);
        let events = all(&mut fold, [changed("b", 2, 1, 6, bad), Event::Commit]);
        assert_eq!(events, ["delete 10.244.2.0-24 at 6", "invalid Node b", "Commit"]);
        let broken = || Event::Put { key: "a".to_owned(), value: Err("spec is a number".to_owned()), revision: 7 };
        assert_eq!(
            all(&mut fold, [broken(), Event::Commit]),
            ["invalid Node a", "Commit"],
            "what it said before stays"
        );
        let listing = all(&mut fold, [Event::Reset, broken(), node("b", 2, 1, 8), Event::Complete]);
        let expected = [
            "Reset",
            "put 10.244.1.0-24 of 10.4.7.1",
            "valid Node a",
            "invalid Node a",
            "put 10.244.2.0-24 of 10.4.7.2",
            "valid Node b",
            "Complete",
        ];
        assert_eq!(listing, expected);
    }

    #[test]
    fn the_own_lease_is_the_own_one_whatever_address_an_operator_gives_to_the_others() {
        let announced = LeaseAttrs::parse(
            br#"{"PublicIP":"10.4.7.21","BackendType":"host-gw"}"#,
            [netstate::family::IpFamily::V4].into_iter(),
        );
        let scope = Scope { families: PerFamily::new(true, false), own: "own".to_owned(), announced: announced.ok() };
        let mut fold = Fold::new("flannel.alpha.coreos.com".parse().unwrap(), scope);
        let prefix = |name: &str| format!("flannel.alpha.coreos.com/{name}");
        let said = |address: &str| {
            json!({prefix("kube-subnet-manager"): "true", prefix("backend-type"): "host-gw",
                prefix("backend-data"): "null", prefix("public-ip"): address, prefix("public-ip-overwrite"): "203.0.113.7"})
        };
        let own = all(&mut fold, [changed("own", 1, 1, 5, said("203.0.113.7"))]);
        assert_eq!(own, ["put 10.244.1.0-24 of 10.4.7.21"]);
        let other = all(&mut fold, [changed("other", 2, 1, 5, said("203.0.113.7"))]);
        assert_eq!(other, ["put 10.244.2.0-24 of 203.0.113.7"]);
        let another = all(&mut fold, [changed("own", 1, 1, 6, said("10.4.7.99"))]);
        assert_eq!(another, ["put 10.244.1.0-24 of 10.4.7.99"], "another program's");
    }

    #[test]
    fn a_listing_shows_everything_again_and_the_view_forgets_the_rest() {
        let (mut fold, mut view) = (fold(), View::default());
        let mut take = |events: Vec<NodeEvent>| {
            for event in events.into_iter().flat_map(|event| fold.apply(event)) {
                view.apply(event, Duration::ZERO);
            }
            view.keys().map(|key| key.to_string()).collect::<Vec<_>>()
        };
        let first = take((1..=5).map(|n| node(&format!("n{n}"), n, 1, 5)).fold(vec![Event::Reset], |mut all, node| {
            all.push(node);
            all
        }));
        assert_eq!(first.len(), 5);
        take(vec![Event::Complete]);
        let again: Vec<NodeEvent> = (2..=5).map(|n| node(&format!("n{n}"), n, 1, 5)).collect();
        let second = take([Event::Reset].into_iter().chain(again).chain([Event::Complete]).collect());
        assert_eq!(second, ["10.244.2.0-24", "10.244.3.0-24", "10.244.4.0-24", "10.244.5.0-24"]);
    }
}
