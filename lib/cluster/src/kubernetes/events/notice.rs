//! `Notice`: what is reported of which object, and the Event that it makes.
//!
//! Pure; time is an argument. Invariant: an Event is one that the API server takes: in the namespace of its object, its message no longer
//! than [`LONGEST`].

use std::time::Duration;

use serde_json::{Value, json};

use super::due::REPEAT;
use crate::time::rfc3339;

/// Longest message that the API server takes, in bytes (`NoteLengthLimit`, pkg/apis/core/validation/events.go).
const LONGEST: usize = 1024;

/// Longest name of an object, in bytes (DNS subdomain), less what an Event's name has behind it.
const LONGEST_NAME: usize = 253 - 17;

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A Node. Without its uid the name stands in its place, as kubelet and kube-proxy have it: `kubectl describe` asks for both.
    Node {
        /// Its name.
        name: String,
        /// Its uid, where that is known.
        uid: Option<String>,
    },
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Subject {
    /// The Node of this name.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self::Node { name: name.to_owned(), uid: None }
    }

    /// Kind and name of it.
    const fn parts(&self) -> (&'static str, &String) {
        match self {
            Self::Node { name, .. } => ("Node", name),
            Self::Service { name, .. } => ("Service", name),
        }
    }

    /// The namespace of Events about it.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Node { .. } => "default",
            Self::Service { namespace, .. } => namespace,
        }
    }

    fn reference(&self, uid: Option<&str>) -> Value {
        match self {
            Self::Node { name, uid: own } => {
                let uid = own.as_deref().or(uid).unwrap_or(name);
                json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid})
            }
            Self::Service { namespace, name } => {
                let uid = uid.map_or_else(|| format!("{namespace}/{name}"), str::to_owned);
                json!({"apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name, "uid": uid})
            }
        }
    }
}

/// The type of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Something happened.
    Normal,
    /// Somebody must act.
    Warning,
}

/// What is to be reported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// Of what.
    pub subject: Subject,
    /// How bad it is.
    pub grade: Grade,
    /// A word for programs, such as `NoSubnet`.
    pub reason: &'static str,
    /// What was done when it was noticed, in such a word as well; empty where that is not given.
    pub action: &'static str,
    /// The same for people.
    pub message: String,
    /// Every node reports this: one Event is enough for all of them.
    pub common: bool,
}

/// Who reports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    /// The program.
    pub(super) component: &'static str,
    /// The node.
    pub(super) host: &'a str,
}

impl Notice {
    /// The Event of core/v1 for this, at `now` since 1970, about the object with this uid; `number` makes its name that one and no
    /// other, where not every node is to give it the same name.
    pub(super) fn event(&self, source: Source<'_>, uid: Option<&str>, now: Duration, number: u64) -> Value {
        let time = rfc3339(now);
        let message = shortened(&self.message);
        let (_, name) = self.subject.parts();
        let number = if self.common { self.common_number(now) } else { number };
        let name = format!("{}.{number:016x}", name.get(..LONGEST_NAME).unwrap_or(name));
        let mut event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self.subject.namespace()},
            "involvedObject": self.subject.reference(uid),
            "reason": self.reason,
            "message": message,
            "type": match self.grade {
                Grade::Normal => "Normal",
                Grade::Warning => "Warning",
            },
            "source": {"component": source.component, "host": source.host},
            "reportingComponent": source.component,
            "reportingInstance": source.host,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        });
        if let Some(event) = event.as_object_mut().filter(|_| !self.action.is_empty()) {
            event.insert("action".to_owned(), self.action.into());
        }
        event
    }

    /// The number that every node gives this within one and the same half hour (FNV-1a).
    fn common_number(&self, now: Duration) -> u64 {
        let period = now.as_secs() / REPEAT.as_secs();
        let (kind, name) = self.subject.parts();
        let parts = [kind, self.subject.namespace(), name, self.reason, &self.message];
        let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0])).chain(period.to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

fn shortened(message: &str) -> String {
    if message.len() <= LONGEST {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(LONGEST - 3);
    format!("{}...", message.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_795_762_705);

    fn notice(subject: Subject) -> Notice {
        let message = "ä".repeat(1000);
        Notice { subject, grade: Grade::Warning, reason: "NoSubnet", action: "", message, common: false }
    }

    fn event(notice: &Notice, uid: Option<&str>, (host, now): (&str, Duration)) -> Value {
        notice.event(Source { component: "netd", host }, uid, now, 7)
    }

    #[test]
    fn an_event_names_the_node_and_has_a_message_that_the_server_takes() {
        let node = Subject::Node { name: "n1".to_owned(), uid: Some("u-1".to_owned()) };
        let event = event(&notice(node), None, ("n1", NOW));
        assert_eq!(event["metadata"]["name"], "n1.0000000000000007");
        assert_eq!(event["involvedObject"], json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1"}));
        assert_eq!(event["lastTimestamp"], "2026-11-27T06:58:25Z");
        assert!(event.get("action").is_none());
        let message = event["message"].as_str().unwrap();
        assert!(message.len() <= 1024 && message.ends_with("..."), "{}", message.len());
    }

    #[test]
    fn an_event_of_a_service_lies_beside_it_and_has_its_uid_where_that_is_known() {
        let service = Subject::Service { namespace: "shop".to_owned(), name: "web".to_owned() };
        let found = event(&notice(service.clone()), Some("u-2"), ("n1", NOW));
        assert_eq!((&found["metadata"]["namespace"], &found["involvedObject"]["uid"]), (&json!("shop"), &json!("u-2")));
        let unknown = event(&notice(service), None, ("n1", NOW));
        assert_eq!(unknown["involvedObject"]["uid"], "shop/web", "as kube-proxy has it");
        assert_eq!(event(&notice(Subject::node("n1")), None, ("n1", NOW))["involvedObject"]["uid"], "n1");
        let long = event(&notice(Subject::node(&"n".repeat(253))), None, ("n1", NOW));
        assert_eq!(long["metadata"]["name"].as_str().map(str::len), Some(253));
    }

    #[test]
    fn what_is_the_same_on_every_node_has_one_name_for_half_an_hour() {
        let service = Subject::Service { namespace: "shop".to_owned(), name: "web".to_owned() };
        let common = Notice { common: true, ..notice(service) };
        let name = |notice: &Notice, host, seconds| {
            event(notice, None, (host, NOW + Duration::from_secs(seconds)))["metadata"]["name"].clone()
        };
        assert_eq!(name(&common, "n1", 0), name(&common, "n2", 60));
        assert_ne!(name(&common, "n1", 0), name(&common, "n1", 1800), "or the server's next one would be the last one");
        let other = Notice { message: "another".to_owned(), ..common.clone() };
        assert_ne!(name(&common, "n1", 0), name(&other, "n1", 0));
    }
}
