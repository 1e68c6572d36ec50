//! `View`: the Services and EndpointSlices that are known, and which Services a new event concerns.
//!
//! Invariants. An event that changes nothing concerns nobody. A malformed object keeps its last good value, also through a
//! new listing, and is reported until it is good again or gone. Junk in the source is reported and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{ClusterError, Event, Snapshot};

use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;
use crate::source::{Object, Reading};

/// What is known of the cluster; see the module's text.
#[derive(Debug, Default)]
pub(crate) struct View {
    objects: Snapshot<String, Object>,
    /// Which slices each Service has.
    slices: BTreeMap<ObjectName, BTreeSet<String>>,
    /// Which Service each slice was counted for.
    service_of: BTreeMap<String, ObjectName>,
    /// Malformed objects by key, with the reason.
    malformed: BTreeMap<String, String>,
    /// Malformed objects of the listing that is under way.
    listed: Option<BTreeSet<String>>,
}

impl View {
    /// Takes in an event; returns the Services whose plan it may change.
    pub(crate) fn take(&mut self, event: Event<String, Reading>) -> BTreeSet<ObjectName> {
        let changed = match event {
            Event::Put { key, value: Ok(object), revision } => {
                self.malformed.remove(&key);
                self.objects.apply(Event::Put { key, value: object, revision })
            }
            Event::Put { key, value: Err(reason), revision } => self.keep(key, reason, revision),
            Event::Delete { key, revision } => {
                self.malformed.remove(&key);
                self.objects.apply(Event::Delete { key, revision })
            }
            Event::Reset => {
                self.listed = Some(BTreeSet::new());
                self.objects.apply(Event::Reset)
            }
            Event::Complete => {
                if let Some(listed) = self.listed.take() {
                    self.malformed.retain(|key, _| listed.contains(key));
                }
                self.objects.apply(Event::Complete)
            }
            Event::Origin(origin) => self.objects.apply(Event::Origin(origin)),
            Event::Commit => self.objects.apply(Event::Commit),
            Event::Lost(error) => self.objects.apply(Event::Lost(error)),
            Event::Invalid { source, reason } => self.objects.apply(Event::Invalid { source, reason }),
            Event::Valid { source } => self.objects.apply(Event::Valid { source }),
            Event::Notes { source, notes } => self.objects.apply(Event::Notes { source, notes }),
        };
        changed.iter().flat_map(|key| self.concerned(key)).collect()
    }

    /// Notes a malformed object and keeps its last good value.
    fn keep(&mut self, key: String, reason: String, revision: i64) -> Vec<String> {
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        self.malformed.insert(key.clone(), reason);
        match self.objects.get(&key).cloned() {
            Some(value) => self.objects.apply(Event::Put { key, value, revision }),
            None => Vec::new(),
        }
    }

    /// The Services that a changed object belongs to, before and after the change.
    fn concerned(&mut self, key: &str) -> Vec<ObjectName> {
        let Some(ObjectKey { kind, name }) = ObjectKey::from_etcd(key) else { return Vec::new() };
        if kind == Kind::Service {
            return vec![name];
        }
        let mut concerned = Vec::new();
        if let Some(before) = self.service_of.remove(key) {
            if let Some(slices) = self.slices.get_mut(&before) {
                slices.remove(key);
                if slices.is_empty() {
                    self.slices.remove(&before);
                }
            }
            concerned.push(before);
        }
        if let Some(Object::Slice(slice)) = self.objects.get(key) {
            self.slices.entry(slice.service.clone()).or_default().insert(key.to_owned());
            self.service_of.insert(key.to_owned(), slice.service.clone());
            concerned.push(slice.service.clone());
        }
        concerned
    }

    /// A Service.
    #[must_use]
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Service> {
        let key = ObjectKey { kind: Kind::Service, name: name.clone() };
        match self.objects.get(&key.to_string()) {
            Some(Object::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The EndpointSlices of a Service.
    pub(crate) fn slices(&self, name: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let slice = |key: &String| match self.objects.get(key) {
            Some(Object::Slice(slice)) => Some(slice.as_ref()),
            _ => None,
        };
        self.slices.get(name).into_iter().flatten().filter_map(slice)
    }

    /// All Services.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.objects.entries().values().filter_map(|object| match object {
            Object::Service(service) => Some(service.as_ref()),
            Object::Slice(_) => None,
        })
    }

    /// All EndpointSlices.
    pub(crate) fn all_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.objects.entries().values().filter_map(|object| match object {
            Object::Slice(slice) => Some(slice.as_ref()),
            Object::Service(_) => None,
        })
    }

    /// Malformed objects by key with the reason, and whether an earlier value of it is still in use.
    pub(crate) fn malformed(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.malformed.iter().map(|(key, reason)| (key.as_str(), reason.as_str(), self.objects.get(key).is_some()))
    }

    /// Files of the source that cannot be read, with the reason.
    #[must_use]
    pub(crate) fn unreadable(&self) -> &BTreeMap<String, String> {
        self.objects.invalid()
    }

    /// What files of the source hold beside what is used.
    #[must_use]
    pub(crate) fn notes(&self) -> &BTreeMap<String, Vec<String>> {
        self.objects.notes()
    }

    /// Why the source is out of reach at the moment, if so.
    #[must_use]
    pub(crate) fn lost(&self) -> Option<&ClusterError> {
        self.objects.lost()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::read;

    fn put(key: &str, json: &serde_json::Value) -> Event<String, Reading> {
        let object = ObjectKey::from_etcd(key).unwrap();
        Event::Put { key: key.to_owned(), value: read(&object, json.to_string().as_bytes()), revision: 1 }
    }

    fn web(ip: &str) -> Event<String, Reading> {
        let json = json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": ip}});
        put("services/default/web", &json)
    }

    fn slice(service: &str, annotation: &str) -> Event<String, Reading> {
        let labels = json!({"kubernetes.io/service-name": service});
        let metadata = json!({"name": "web-1", "labels": labels, "annotations": {"a": annotation}});
        put(
            "endpointslices/default/web-1",
            &json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4"}),
        )
    }

    fn delete(key: &str) -> Event<String, Reading> {
        Event::Delete { key: key.to_owned(), revision: 2 }
    }

    fn names(names: &[&str]) -> BTreeSet<ObjectName> {
        names.iter().map(|name| ObjectName::new("default", *name)).collect()
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
        assert_eq!(view.take(delete("endpointslices/default/web-1")), names(&["api"]));
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
            [("services/default/web", true)]
        );
        view.take(Event::Reset);
        view.take(web("192.168.0"));
        assert_eq!(view.take(Event::Complete), names(&[]));
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
        view.take(Event::Reset);
        view.take(Event::Complete);
        assert_eq!(view.malformed().count(), 0);
    }

    #[test]
    fn what_a_listing_leaves_out_is_gone() {
        let mut view = View::default();
        view.take(web("192.168.0.10"));
        view.take(slice("web", "a"));
        view.take(Event::Reset);
        assert_eq!(view.take(Event::Complete), names(&["web"]));
        assert_eq!(view.services().count() + view.all_slices().count(), 0);
    }
}
