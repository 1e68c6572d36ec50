//! Where Services and EndpointSlices come from: etcd or a directory of manifests, as one stream of readings.
//!
//! Invariant: an object that cannot be read stays in the stream, as the reason why; nobody further on has to know which
//! source it came from. Objects of other kinds in a directory are none of ours; any other key below etcd's prefix
//! is junk and reported as such.

pub(crate) mod view;

use std::path::PathBuf;

use cluster::etcd::{Client, Prefix};
use cluster::{Event, Problem, directory, etcd};
use serde_json::Value;

use crate::object::ObjectName;
use crate::object::key::{Kind, ObjectKey};
use crate::object::service::Service;
use crate::object::slice::EndpointSlice;

/// An object that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    Slice(Box<EndpointSlice>),
}

/// An object, or why it cannot be read.
pub(crate) type Reading = Result<Object, String>;

/// Where to listen.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Below a prefix in etcd.
    Etcd(Client, Prefix),
    /// The manifests of a directory.
    Directory(PathBuf),
}

/// The stream; see the module's text.
#[derive(Debug)]
pub(crate) struct Source {
    events: cluster::Source,
    read_key: fn(&str) -> Option<ObjectKey>,
    /// Keys that are no objects are reported as malformed (etcd) or read over (a directory).
    junk: bool,
}

impl Source {
    /// Begins to listen; `seed` spreads the retries of many nodes. Must be called inside a tokio runtime.
    #[must_use]
    pub(crate) fn listen(place: &Place, seed: u64) -> Self {
        match place {
            Place::Etcd(client, prefix) => {
                let events = etcd::watch(client, prefix, seed);
                Self { events, read_key: ObjectKey::from_etcd, junk: true }
            }
            Place::Directory(path) => {
                let events = directory::watch(path, &Kind::IN_MANIFESTS, seed);
                Self { events, read_key: ObjectKey::from_manifest, junk: false }
            }
        }
    }

    /// The next event; its keys are those of [`ObjectKey`]'s text. Cancel-safe. `None` when the runtime ends.
    pub(crate) async fn next(&mut self) -> Option<Event<String, Reading>> {
        loop {
            let event = self.events.next().await?;
            if let Some(event) = translate(event, self.read_key, self.junk) {
                return Some(event);
            }
        }
    }
}

fn translate(event: Event, read_key: fn(&str) -> Option<ObjectKey>, junk: bool) -> Option<Event<String, Reading>> {
    let key = |key: String| match read_key(&key) {
        Some(object) => Some((object.to_string(), Some(object))),
        None => junk.then_some((key, None)),
    };
    let value = |(_, object): &(String, Option<ObjectKey>), value: Vec<u8>| match object {
        Some(object) => read(object, &value),
        None => Err(JUNK.to_owned()),
    };
    Some(event.filter_map(key, value)?.map(|(key, _)| key, |_, reading| reading))
}

const JUNK: &str = "is no key of ours; accepted: services/NAMESPACE/NAME and endpointslices/NAMESPACE/NAME";

/// Reads the object stored under `key`.
///
/// # Errors
/// What is wrong with it, as text: not JSON, a malformed field, or another name than its key's.
pub(crate) fn read(key: &ObjectKey, value: &[u8]) -> Reading {
    let json: Value = serde_json::from_slice(value).map_err(|error| format!("not valid JSON: {error}"))?;
    let object = match key.kind {
        Kind::Service => Service::from_json(&json).map(|service| Object::Service(Box::new(service))),
        Kind::EndpointSlice => EndpointSlice::from_json(&json).map(|slice| Object::Slice(Box::new(slice))),
    };
    let object = object.map_err(|problem| problem.to_string())?;
    let name: &ObjectName = match &object {
        Object::Service(service) => &service.name,
        Object::Slice(slice) => &slice.name,
    };
    if *name != key.name {
        let accepted = "the namespace and name of its key";
        return Err(Problem::new("metadata", name.to_string(), accepted).to_string());
    }
    Ok(object)
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
        let etcd = translate(put("services/default/web", WEB), ObjectKey::from_etcd, true);
        let directory = translate(put("Service/default/web", WEB), ObjectKey::from_manifest, false);
        assert_eq!(etcd, directory);
        assert!(
            matches!(etcd, Some(Event::Put { key, value: Ok(Object::Service(_)), .. }) if key == "services/default/web")
        );
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
            match translate(put("services/default/web", value), ObjectKey::from_etcd, true) {
                Some(Event::Put { value: Err(text), .. }) => assert!(text.contains(reason), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn junk_keys_are_told_in_etcd_and_read_over_in_a_directory() {
        let reported = translate(put("junk", "x"), ObjectKey::from_etcd, true);
        assert!(matches!(reported, Some(Event::Put { key, value: Err(_), .. }) if key == "junk"));
        let gone = Event::Delete { key: "junk".to_owned(), revision: 8 };
        assert!(
            matches!(translate(gone, ObjectKey::from_etcd, true), Some(Event::Delete { key, .. }) if key == "junk")
        );
        assert_eq!(translate(put("Deployment/default/web", "{}"), ObjectKey::from_manifest, false), None);
    }
}
