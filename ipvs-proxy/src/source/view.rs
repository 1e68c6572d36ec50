//! `View`: the Services, EndpointSlices and Nodes that are known, and which Services a new event concerns.
//!
//! Invariants. An event that changes nothing concerns nobody. A malformed object keeps its last good value, also through a
//! new listing, and is reported until it is good again or gone. Junk in the source is reported and changes nothing. The
//! listing of one kind removes no object of the other. What would go together with nearly everything else is
//! [withheld](Doubt) first.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use cluster::{ClusterError, Event, Snapshot};

use super::doubt::{Doubt, How, is_doubtful};
use crate::object::ObjectName;
use crate::object::few::Few;
use crate::object::key::{Kind, ObjectKey};
use crate::object::node::Node;
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;
use crate::object::topology::Topologies;
use crate::source::{JUNK, Reading, Update};

/// What is known of the cluster; see the module's text.
#[derive(Debug, Default)]
pub(crate) struct View {
    services: Kept<Service>,
    slices: Kept<EndpointSlice>,
    /// What endpoints of different slices share.
    topologies: Topologies,
    /// The own one, if the source has it.
    nodes: Kept<Node>,
    /// Keys that are no objects.
    junk: Snapshot<String, ()>,
    /// Which slices each Service has.
    slices_of: BTreeMap<ObjectName, Few<ObjectName>>,
    /// Which Service each slice was counted for.
    service_of: BTreeMap<ObjectName, ObjectName>,
    doubt: Doubt,
}

/// The objects of one kind, malformed ones with the value that they had before.
#[derive(Debug)]
struct Kept<T> {
    objects: Snapshot<ObjectName, Box<T>>,
    /// Malformed objects with the reason.
    malformed: BTreeMap<ObjectName, String>,
    /// Objects of the listing that is under way, malformed or not.
    listed: Option<BTreeSet<ObjectName>>,
    /// Objects that were deleted since the last end of a change.
    deleted: BTreeSet<ObjectName>,
    /// Objects that were read, for tests of what a report costs.
    #[cfg(test)]
    reads: std::sync::atomic::AtomicUsize,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            objects: Snapshot::default(),
            malformed: BTreeMap::new(),
            listed: None,
            deleted: BTreeSet::new(),
            #[cfg(test)]
            reads: std::sync::atomic::AtomicUsize::new(0),
        }
    }
}

impl<T: PartialEq + Clone> Kept<T> {
    /// Takes in an event; returns the objects that differ from before.
    fn apply(&mut self, event: Event<ObjectName, Reading<T>>) -> Vec<ObjectName> {
        match event {
            Event::Put { key, value: Ok(value), revision } => {
                self.malformed.remove(&key);
                self.see(&key);
                self.objects.apply(Event::Put { key, value, revision })
            }
            Event::Put { key, value: Err(reason), revision } => self.keep(key, reason, revision),
            Event::Delete { key, revision } => {
                self.objects.advance(revision);
                self.malformed.remove(&key);
                self.deleted.insert(key);
                Vec::new()
            }
            keyless => keyless.keyless().map_or_else(Vec::new, |event| self.apply_keyless(event)),
        }
    }

    fn apply_keyless(&mut self, event: Event<Infallible, Infallible>) -> Vec<ObjectName> {
        match event {
            Event::Reset => self.listed = Some(BTreeSet::new()),
            Event::Complete => {
                if let Some(listed) = self.listed.take() {
                    self.malformed.retain(|key, _| listed.contains(key));
                }
            }
            _ => {}
        }
        event.keyless().map_or_else(Vec::new, |event| self.objects.apply(event))
    }

    /// The object is there.
    fn see(&mut self, key: &ObjectName) {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        self.deleted.remove(key);
    }

    /// Objects that the listing under way has not shown.
    fn missing(&self) -> Vec<ObjectName> {
        let Some(listed) = &self.listed else { return Vec::new() };
        self.objects.entries().keys().filter(|key| !listed.contains(*key)).cloned().collect()
    }

    /// Objects that are known and were deleted since the last end of a change.
    fn take_deleted(&mut self) -> Vec<ObjectName> {
        let deleted = std::mem::take(&mut self.deleted);
        deleted.into_iter().filter(|key| self.objects.get(key).is_some()).collect()
    }

    /// Lets an object stand that the source does not show.
    fn stand(&mut self, key: &ObjectName) {
        if let Some(value) = self.objects.get(key).cloned() {
            self.objects.apply(Event::Put { key: key.clone(), value, revision: 0 });
        }
    }

    fn delete(&mut self, key: ObjectName) -> Vec<ObjectName> {
        self.objects.apply(Event::Delete { key, revision: 0 })
    }

    /// Notes a malformed object and keeps its last good value.
    fn keep(&mut self, key: ObjectName, reason: String, revision: i64) -> Vec<ObjectName> {
        self.see(&key);
        self.objects.advance(revision);
        self.malformed.insert(key.clone(), reason);
        let kept = self.objects.get(&key).cloned();
        kept.map_or_else(Vec::new, |value| self.objects.apply(Event::Put { key, value, revision }))
    }

    fn get(&self, name: &ObjectName) -> Option<&T> {
        self.objects.get(name).map(|object| self.read(object))
    }

    fn all(&self) -> impl Iterator<Item = &T> {
        self.objects.entries().values().map(|object| self.read(object))
    }

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests count"))]
    fn read<'a>(&self, object: &'a T) -> &'a T {
        #[cfg(test)]
        self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        object
    }

    /// Malformed objects below `folder`, as [`View::malformed`].
    fn malformed(&self, folder: &str) -> impl Iterator<Item = (String, &str, bool)> {
        self.malformed
            .iter()
            .map(move |(name, reason)| (format!("{folder}/{name}"), reason.as_str(), self.objects.get(name).is_some()))
    }
}

impl View {
    /// Takes in an update; returns the Services whose plan it may change.
    pub(crate) fn take(&mut self, update: Update) -> BTreeSet<ObjectName> {
        if let Some(key) = update.object() {
            self.doubt.forget(&key);
        }
        let mut concerned = self.end(update.ends());
        let is_listed = !update.completes().is_empty();
        self.finish_listings(update.completes());
        concerned.append(&mut self.apply(update));
        if is_listed {
            // As in a snapshot: what came one by one left nodes half-empty.
            self.slices_of = std::mem::take(&mut self.slices_of).into_iter().collect();
            self.service_of = std::mem::take(&mut self.service_of).into_iter().collect();
        }
        concerned
    }

    fn apply(&mut self, update: Update) -> BTreeSet<ObjectName> {
        match update {
            Update::Service(event) => self.services.apply(event).into_iter().collect(),
            Update::Slice(mut event) => {
                if let Event::Put { value: Ok(slice), .. } = &mut event {
                    self.topologies.share(slice);
                }
                let changed = self.slices.apply(event);
                self.concerned(changed)
            }
            Update::Node(event) => {
                self.nodes.apply(event);
                BTreeSet::new()
            }
            Update::Junk(event) => {
                self.junk.apply(event);
                BTreeSet::new()
            }
            Update::Every(event) => {
                self.junk.apply(event.clone().map(|never| match never {}, |_, never| match never {}));
                let mut concerned: BTreeSet<ObjectName> =
                    self.services.apply_keyless(event.clone()).into_iter().collect();
                self.nodes.apply_keyless(event.clone());
                let slices = self.slices.apply_keyless(event);
                concerned.append(&mut self.concerned(slices));
                concerned
            }
        }
    }

    /// Takes deletions that came together for what they say, or withholds them all.
    fn end(&mut self, kinds: &[Kind]) -> BTreeSet<ObjectName> {
        let mut deleted = Vec::new();
        for kind in kinds {
            let names = match kind {
                Kind::Service => self.services.take_deleted(),
                Kind::EndpointSlice => self.slices.take_deleted(),
                Kind::Node => self.nodes.take_deleted(),
            };
            deleted.extend(names.into_iter().map(|name| ObjectKey { kind: *kind, name }));
        }
        let withheld: usize = kinds.iter().map(|kind| self.doubt.count_of(*kind)).sum();
        let known = self.known(kinds).saturating_sub(withheld);
        if is_doubtful(known, deleted.len(), How::Deletions) || self.takes_a_kind(kinds, &deleted, How::Deletions) {
            self.doubt.withhold(deleted, None);
            return BTreeSet::new();
        }
        self.delete(deleted)
    }

    /// Withholds what a listing does not show, when that is too much.
    fn finish_listings(&mut self, kinds: &[Kind]) {
        let mut missing = Vec::new();
        for kind in kinds {
            let names = match kind {
                Kind::Service => self.services.missing(),
                Kind::EndpointSlice => self.slices.missing(),
                Kind::Node => self.nodes.missing(),
            };
            missing.extend(names.into_iter().map(|name| ObjectKey { kind: *kind, name }));
        }
        let went_back = self.services.objects.broken_history().or_else(|| self.slices.objects.broken_history());
        let went_back = went_back.filter(|_| !missing.is_empty()).map(|reason| reason.to_string());
        let is_doubted = is_doubtful(self.known(kinds), missing.len(), How::Listing)
            || self.takes_a_kind(kinds, &missing, How::Listing);
        if went_back.is_none() && !is_doubted {
            missing.iter().for_each(|key| {
                self.doubt.forget(key);
            });
            return;
        }
        for key in &missing {
            match key.kind {
                Kind::Service => self.services.stand(&key.name),
                Kind::EndpointSlice => self.slices.stand(&key.name),
                Kind::Node => self.nodes.stand(&key.name),
            }
        }
        self.doubt.withhold(missing, went_back);
    }

    /// True when one of these kinds would go with nearly everything of it, whatever stays of the others: Services without
    /// slices serve nobody, nor slices without Services.
    fn takes_a_kind(&self, kinds: &[Kind], going: &[ObjectKey], how: How) -> bool {
        kinds.iter().any(|kind| {
            // A listing leaves out what is withheld once more; deletions are of what is not.
            let withheld = if how == How::Deletions { self.doubt.count_of(*kind) } else { 0 };
            let going = going.iter().filter(|key| key.kind == *kind).count();
            is_doubtful(self.known(&[*kind]).saturating_sub(withheld), going, How::Deletions)
        })
    }

    /// How many objects of these kinds there are, withheld ones too.
    #[must_use]
    pub(crate) fn known(&self, kinds: &[Kind]) -> usize {
        let of = |kind: &Kind| match kind {
            Kind::Service => self.services.objects.entries().len(),
            Kind::EndpointSlice => self.slices.objects.entries().len(),
            Kind::Node => self.nodes.objects.entries().len(),
        };
        kinds.iter().map(of).sum()
    }

    fn delete(&mut self, keys: impl IntoIterator<Item = ObjectKey>) -> BTreeSet<ObjectName> {
        let mut concerned = BTreeSet::new();
        for ObjectKey { kind, name } in keys {
            match kind {
                Kind::Service => concerned.extend(self.services.delete(name)),
                Kind::Node => drop(self.nodes.delete(name)),
                Kind::EndpointSlice => {
                    let changed = self.slices.delete(name);
                    concerned.append(&mut self.concerned(changed));
                }
            }
        }
        concerned
    }

    /// Lets go of what was withheld and is to be believed gone by now; returns the Services that it concerns.
    pub(crate) fn believe(&mut self, now: Duration) -> BTreeSet<ObjectName> {
        let gone = self.doubt.believed(self.lost().is_none(), now);
        self.delete(gone)
    }

    /// What is withheld.
    #[must_use]
    pub(crate) const fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// The Services that changed slices belong to, before and after the change.
    fn concerned(&mut self, slices: Vec<ObjectName>) -> BTreeSet<ObjectName> {
        let mut concerned = BTreeSet::new();
        for slice in slices {
            if let Some(before) = self.service_of.remove(&slice) {
                if let Some(others) = self.slices_of.get_mut(&before) {
                    others.remove(&slice);
                    if others.as_slice().is_empty() {
                        self.slices_of.remove(&before);
                    }
                }
                concerned.insert(before);
            }
            if let Some(service) = self.slices.get(&slice).map(|slice| slice.service.clone()) {
                self.slices_of.entry(service.clone()).or_default().insert(slice.clone());
                self.service_of.insert(slice, service.clone());
                concerned.insert(service);
            }
        }
        concerned
    }

    /// How many objects were read so far.
    #[cfg(test)]
    pub(crate) fn reads(&self) -> usize {
        let of = |reads: &std::sync::atomic::AtomicUsize| reads.load(std::sync::atomic::Ordering::Relaxed);
        of(&self.services.reads) + of(&self.slices.reads)
    }

    /// A Service.
    #[must_use]
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// An EndpointSlice.
    #[must_use]
    pub(crate) fn slice(&self, name: &ObjectName) -> Option<&EndpointSlice> {
        self.slices.get(name)
    }

    /// A Node.
    #[must_use]
    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.objects.get(&ObjectName::of_cluster(name)).map(AsRef::as_ref)
    }

    /// The EndpointSlices of a Service that serve it.
    pub(crate) fn slices(&self, name: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let refuses = self.service(name).is_some_and(|service| service.refuses);
        let slices = self.slices_of.get(name).filter(|_| !refuses).into_iter().flat_map(Few::as_slice);
        slices.filter_map(|slice| self.slices.get(slice))
    }

    /// All Services.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.all()
    }

    /// All EndpointSlices.
    pub(crate) fn all_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.all()
    }

    /// Malformed objects in the order of their keys with the reason, and whether an earlier value of it is still in use.
    pub(crate) fn malformed(&self) -> impl Iterator<Item = (String, &str, bool)> {
        let junk = self.junk.entries().keys().map(|key| (key.clone(), JUNK, false));
        let objects = self.slices.malformed("endpointslices").chain(self.services.malformed("services"));
        let mut all: Vec<_> = objects.chain(self.nodes.malformed("nodes")).chain(junk).collect();
        all.sort_unstable();
        all.into_iter()
    }

    /// Files of the source that cannot be read, with the reason.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        let (services, slices) = (self.services.objects.invalid(), self.slices.objects.invalid());
        let others = slices.iter().filter(|(file, _)| !services.contains_key(*file));
        services.iter().chain(others).map(|(file, reason)| (file.as_str(), reason.as_str()))
    }

    /// True when a file of the source cannot be read, or not all of it, in which this name may stand.
    pub(crate) fn may_stand_unread(&self, name: &ObjectName) -> bool {
        // An object of the default namespace need not say so.
        let mut names = vec![name.name()];
        names.extend(Some(name.namespace()).filter(|namespace| *namespace != "default"));
        self.services.objects.may_hold(&names) || self.slices.objects.may_hold(&names)
    }

    /// True when there is nothing in the source that cannot be read and has no earlier value.
    pub(crate) fn is_all_known(&self) -> bool {
        // No name at all is in every file that cannot be read.
        let is_unread = self.services.objects.may_hold(&[]) || self.slices.objects.may_hold(&[]);
        !is_unread && self.malformed().all(|(_, _, kept)| kept)
    }

    /// What files of the source hold beside what is used.
    pub(crate) fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        let (services, slices) = (self.services.objects.notes(), self.slices.objects.notes());
        let others = slices.iter().filter(|(file, _)| !services.contains_key(*file));
        services.iter().chain(others).flat_map(|(file, lines)| lines.iter().map(|line| (file.as_str(), line.as_str())))
    }

    /// Why a source is out of reach at the moment, if so.
    #[must_use]
    pub(crate) fn lost(&self) -> Option<&ClusterError> {
        self.services.objects.lost().or_else(|| self.slices.objects.lost()).or_else(|| self.nodes.objects.lost())
    }
}

#[cfg(test)]
mod tests {
    use cluster::Origin;
    use serde_json::json;

    use super::*;
    use crate::object::key::ObjectKey;
    use crate::source::update;

    fn of_etcd(event: Event) -> Update {
        update(event, ObjectKey::from_etcd, true).unwrap()
    }

    fn put(key: &str, json: &serde_json::Value) -> Update {
        of_etcd(Event::Put { key: key.to_owned(), value: json.to_string().into_bytes(), revision: 1 })
    }

    fn web(ip: &str) -> Update {
        let json = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": ip}});
        put("services/default/web", &json)
    }

    fn slice(service: &str, annotation: &str) -> Update {
        let labels = json!({"kubernetes.io/service-name": service});
        let metadata = json!({"name": "web-1", "labels": labels, "annotations": {"a": annotation}});
        put(
            "endpointslices/default/web-1",
            &json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4"}),
        )
    }

    fn delete(key: &str) -> Update {
        of_etcd(Event::Delete { key: key.to_owned(), revision: 2 })
    }

    fn names(names: &[&str]) -> BTreeSet<ObjectName> {
        names.iter().map(|name| ObjectName::new("default", name)).collect()
    }

    #[test]
    fn an_equal_object_concerns_nobody() {
        let mut view = View::default();
        assert_eq!(view.take(web("192.168.0.10")), names(&["web"]));
        assert_eq!(view.take(web("192.168.0.10")), names(&[]));
        assert_eq!(view.take(slice("web", "a")), names(&["web"]));
        assert_eq!(view.take(slice("web", "b")), names(&[]), "annotation churn");
    }

    #[test]
    fn a_slice_that_moves_concerns_both_services() {
        let mut view = View::default();
        view.take(slice("web", "a"));
        assert_eq!(view.take(slice("api", "a")), names(&["api", "web"]));
        assert_eq!(view.slices(&ObjectName::new("default", "web")).count(), 0);
        assert_eq!(view.slices(&ObjectName::new("default", "api")).count(), 1);
        assert_eq!(view.take(delete("endpointslices/default/web-1")), names(&[]), "the change is not all there");
        assert_eq!(view.take(Update::Every(Event::Commit)), names(&["api"]));
        assert_eq!(view.slices(&ObjectName::new("default", "api")).count(), 0);
    }

    #[test]
    fn a_malformed_object_keeps_its_last_good_value_also_through_a_listing() {
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        assert_eq!(view.take(web("192.168.0")), names(&[]));
        assert!(view.service(&ObjectName::new("default", "web")).is_some());
        assert_eq!(
            view.malformed().map(|(key, _, kept)| (key, kept)).collect::<Vec<_>>(),
            [("services/default/web".to_owned(), true)]
        );
        view.take(Update::Every(Event::Reset));
        view.take(web("192.168.0"));
        assert_eq!(view.take(Update::Every(Event::Complete)), names(&[]));
        assert_eq!(view.malformed().count(), 1);
        view.take(web("192.168.0.11"));
        assert_eq!(view.malformed().count(), 0);
    }

    #[test]
    fn a_malformed_object_that_is_deleted_or_not_listed_any_more_is_forgotten() {
        let mut view = View::default();
        view.take(web("192.168.0"));
        view.take(delete("services/default/web"));
        assert_eq!(view.malformed().count(), 0);
        view.take(web("192.168.0"));
        view.take(Update::Every(Event::Reset));
        view.take(Update::Every(Event::Complete));
        assert_eq!(view.malformed().count(), 0);
    }

    fn node(zone: &str) -> Update {
        let metadata = json!({"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}});
        put("nodes/n1", &json!({"kind": "Node", "metadata": metadata}))
    }

    #[test]
    fn a_node_concerns_no_service_and_goes_when_it_is_deleted() {
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        assert_eq!(view.take(node("z1")), names(&[]));
        let zone = |view: &View| view.node("n1").and_then(|node| node.zone.clone());
        assert_eq!(zone(&view).as_deref(), Some("z1"));
        view.take(node("z2"));
        assert_eq!((zone(&view).as_deref(), view.node("n2")), (Some("z2"), None));
        view.take(put("nodes/n1", &json!({"kind": "Node"})));
        assert_eq!(view.malformed().map(|(key, _, kept)| (key, kept)).collect::<Vec<_>>(), [("nodes/n1".into(), true)]);
        view.take(delete("nodes/n1"));
        view.take(Update::Every(Event::Commit));
        assert_eq!((view.node("n1"), view.services().count()), (None, 1));
    }

    #[test]
    fn a_node_that_a_listing_of_nothing_leaves_out_stays_until_that_is_believed() {
        let mut view = View::default();
        for event in [node("z1"), web("192.168.0.10")] {
            view.take(event);
        }
        let every: fn(Event<Infallible, Infallible>) -> Update = Update::Every;
        for complete in [every, |event| Update::Node(event.keyless().unwrap())] {
            view.take(complete(Event::Reset));
            view.take(complete(Event::Complete));
            assert!(view.node("n1").is_some());
        }
        view.believe(Duration::ZERO);
        view.believe(Duration::from_secs(60));
        assert_eq!(view.node("n1"), None);
    }

    /// A store from a backup that is later than the last listing, and older than the change.
    #[test]
    fn what_changed_behind_the_listing_of_a_store_that_went_back_stays() {
        let origin = |revision| Update::Every(Event::Origin(Origin { store: 1, revision, ..Origin::default() }));
        let named = |name: &str| {
            let json = json!({"kind": "Service", "metadata": {"name": name}, "spec": {"clusterIP": "192.168.0.10"}});
            put(&format!("services/default/{name}"), &json)
        };
        let listing = |revision, names: &[&str]| {
            let shown = names.iter().map(|name| named(name));
            let begins = [Update::Every(Event::Reset), origin(revision)].into_iter();
            begins.chain(shown).chain([Update::Every(Event::Complete)]).collect::<Vec<_>>()
        };
        let value = b"{}".to_vec();
        let changes = [
            (of_etcd(Event::Put { key: "services/default/c".to_owned(), value, revision: 60 }), true),
            (of_etcd(Event::Delete { key: "services/default/c".to_owned(), revision: 60 }), true),
            (Update::Every(Event::Commit), false),
        ];
        for (change, is_known) in changes {
            let mut view = View::default();
            for update in listing(40, &["a", "b"]).into_iter().chain([change]).chain(listing(50, &["a"])) {
                view.take(update);
            }
            assert_eq!(view.service(&ObjectName::new("default", "b")).is_some(), is_known);
        }
    }

    #[test]
    fn what_a_listing_leaves_out_is_gone() {
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        view.take(slice("web", "a"));
        view.take(Update::Every(Event::Reset));
        view.take(slice("web", "a"));
        assert_eq!(view.take(Update::Every(Event::Complete)), names(&["web"]));
        assert_eq!((view.services().count(), view.all_slices().count()), (0, 1));
    }

    #[test]
    fn a_listing_that_shows_nothing_takes_nothing_before_its_time() {
        let at = Duration::from_secs;
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        view.take(slice("web", "a"));
        for _ in 0..2 {
            view.take(Update::Every(Event::Reset));
            assert_eq!(view.take(Update::Every(Event::Complete)), names(&[]));
            assert!(view.doubt().alarm().is_some());
        }
        assert_eq!(view.believe(at(0)), names(&[]));
        view.take(slice("web", "a"));
        assert_eq!(view.believe(at(60)), names(&["web"]), "what was shown again stays");
        assert_eq!((view.services().count(), view.all_slices().count()), (0, 1));
        assert_eq!(view.doubt().alarm(), None);
    }

    #[test]
    fn deletions_of_everything_together_are_withheld_and_one_by_name_is_not() {
        let mut view = View::default();
        for last in 10..13 {
            let json = json!({"kind": "Service", "metadata": {"name": format!("s{last}")},
                "spec": {"clusterIP": format!("192.168.0.{last}")}});
            view.take(put(&format!("services/default/s{last}"), &json));
        }
        for last in 10..13 {
            view.take(delete(&format!("services/default/s{last}")));
        }
        assert_eq!(view.take(Update::Every(Event::Commit)), names(&[]));
        assert_eq!(view.services().count(), 3);
        view.take(delete("services/default/s11"));
        assert_eq!(view.take(Update::Every(Event::Commit)), names(&["s11"]));
    }

    #[test]
    fn what_is_withheld_of_one_kind_makes_no_deletion_of_another_doubtful() {
        let mut view = View::default();
        for n in 10..30 {
            let json = json!({"kind": "Service", "metadata": {"name": format!("s{n}")},
                "spec": {"clusterIP": format!("192.168.0.{n}")}});
            view.take(put(&format!("services/default/s{n}"), &json));
            let labels = json!({"kubernetes.io/service-name": format!("s{n}")});
            let json = json!({"kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": format!("s{n}"), "labels": labels}});
            view.take(put(&format!("endpointslices/default/s{n}"), &json));
        }
        view.take(Update::Slice(Event::Reset));
        view.take(Update::Slice(Event::Complete));
        assert_eq!(view.doubt().count_of(Kind::EndpointSlice), 20);
        for n in 10..13 {
            view.take(delete(&format!("services/default/s{n}")));
        }
        assert_eq!(view.take(Update::Service(Event::Commit)), names(&["s10", "s11", "s12"]));
    }

    #[test]
    fn a_kind_that_goes_as_a_whole_is_withheld_whatever_stays_of_the_other() {
        for (kind, how) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let mut view = View::default();
            let show = |view: &mut View, kind: usize| {
                for n in 10..15 {
                    view.take(if kind == 0 {
                        let json = json!({"kind": "Service", "metadata": {"name": format!("s{n}")},
                            "spec": {"clusterIP": format!("192.168.0.{n}")}});
                        put(&format!("services/default/s{n}"), &json)
                    } else {
                        let labels = json!({"kubernetes.io/service-name": format!("s{n}")});
                        let json = json!({"kind": "EndpointSlice", "addressType": "IPv4",
                            "metadata": {"name": format!("s{n}"), "labels": labels}});
                        put(&format!("endpointslices/default/s{n}"), &json)
                    });
                }
            };
            show(&mut view, 0);
            show(&mut view, 1);
            if how == 0 {
                let folder = ["services", "endpointslices"][kind];
                (10..15).for_each(|n| drop(view.take(delete(&format!("{folder}/default/s{n}")))));
                assert_eq!(view.take(Update::Every(Event::Commit)), names(&[]));
            } else {
                // A second listing that shows as little does not confirm the first.
                for _ in 0..2 {
                    view.take(Update::Every(Event::Reset));
                    show(&mut view, 1 - kind);
                    assert_eq!(view.take(Update::Every(Event::Complete)), names(&[]));
                }
            }
            assert_eq!((view.services().count(), view.all_slices().count()), (5, 5), "{kind} {how}");
            assert!(view.doubt().alarm().is_some());
            view.believe(Duration::ZERO);
            assert_eq!(view.believe(Duration::from_secs(60)).len(), 5, "{kind} {how}");
        }
    }

    #[test]
    fn the_listing_of_one_kind_removes_no_object_of_the_other() {
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        view.take(slice("web", "a"));
        let believed = |view: &mut View, after: u64| {
            view.believe(Duration::from_secs(after));
            view.believe(Duration::from_secs(after + 60))
        };
        view.take(Update::Slice(Event::Reset));
        view.take(Update::Slice(Event::Complete));
        assert_eq!(believed(&mut view, 0), names(&["web"]));
        assert_eq!((view.services().count(), view.all_slices().count()), (1, 0));
        view.take(Update::Service(Event::Reset));
        view.take(Update::Service(Event::Complete));
        assert_eq!(believed(&mut view, 100), names(&["web"]));
        assert_eq!(view.services().count(), 0);
    }

    #[test]
    fn junk_is_reported_until_it_is_deleted_or_not_listed_any_more() {
        let mut view = View::default();
        for (number, gone) in [delete("junk"), Update::Every(Event::Complete)].into_iter().enumerate() {
            view.take(put("junk", &json!(number)));
            assert_eq!(view.malformed().map(|(key, ..)| key).collect::<Vec<_>>(), ["junk"]);
            view.take(Update::Every(Event::Reset));
            view.take(gone);
            assert_eq!(view.malformed().count(), 0);
        }
    }
}
