//! The texts of lists and watches: envelope, key and revision, and the object's own text, which is somebody else's to read.
//!
//! Invariants: what cannot be read of one object is that object's fault alone; its key comes from its metadata. A line of a watch is not
//! scanned for what is not read of it: a heartbeat of a Node is 14 KB, nearly all of it behind `metadata` and `spec`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A line of a watch.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What is read of every object.
#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default, rename = "resourceVersion")]
    revision: Cow<'a, str>,
}

/// What a bookmark says besides.
#[derive(Deserialize)]
struct Annotated {
    metadata: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Marks the end of what a streaming list shows (apimachinery, meta/v1/types.go, `InitialEventsAnnotationKey`).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One object as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Raw<'a> {
    /// `namespace/name`, or `name`.
    pub(crate) key: String,
    /// `metadata.resourceVersion`.
    pub(crate) revision: String,
    /// Its JSON text.
    pub(crate) text: &'a str,
}

/// What a line of a watch says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// The object is there, and is so.
    Put(Raw<'a>),
    /// It is gone, or not selected any more.
    Delete(Raw<'a>),
    /// Everything up to this revision was shown.
    Bookmark {
        revision: String,
        /// All that existed when the stream began was shown.
        ends_listing: bool,
    },
    /// The watch ends, for this reason.
    Error { code: u16, message: String },
}

impl<'a> Message<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// Why it says nothing.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, String> {
        if let Some((kind, object)) = as_written(line) {
            return match kind {
                "DELETED" => Raw::parse(object).map(Self::Delete),
                _ => Raw::parse(object).map(Self::Put),
            };
        }
        let line: Line<'a> = serde_json::from_slice(line).map_err(|error| format!("no event of a watch: {error}"))?;
        match line.kind.as_ref() {
            "ADDED" | "MODIFIED" => Raw::parse(line.object.get()).map(Self::Put),
            "DELETED" => Raw::parse(line.object.get()).map(Self::Delete),
            "BOOKMARK" => {
                let annotated: Annotated =
                    serde_json::from_str(line.object.get()).map_err(|error| error.to_string())?;
                let annotations = annotated.metadata.annotations.unwrap_or_default();
                let ends_listing = annotations.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true");
                Ok(Self::Bookmark { revision: head(line.object.get())?.revision.into_owned(), ends_listing })
            }
            "ERROR" => {
                let status: Status = serde_json::from_str(line.object.get()).map_err(|error| error.to_string())?;
                let code = status.code.and_then(|code| u16::try_from(code).ok()).unwrap_or_default();
                Ok(Self::Error { code, message: status.message.unwrap_or_default() })
            }
            other => Err(format!("an event of the unknown type {other:?}")),
        }
    }
}

/// Type and object of a line as servers write it, the type first and nothing behind the object (meta/v1/watch.go, `WatchEvent`), where
/// it is about an object: its end is known without scanning it.
fn as_written(line: &[u8]) -> Option<(&str, &str)> {
    let (kind, rest) = std::str::from_utf8(line).ok()?.strip_prefix(r#"{"type":""#)?.split_once('"')?;
    let object = rest.strip_prefix(r#","object":"#)?.trim_end().strip_suffix('}')?;
    (matches!(kind, "ADDED" | "MODIFIED" | "DELETED") && object.starts_with('{')).then_some((kind, object))
}

fn head(text: &str) -> Result<Metadata<'_>, String> {
    let missing = |error: serde_json::Error| format!("an object without metadata: {error}");
    let mut parts = Parts::<Metadata<'_>, IgnoredAny>::new(false);
    parts.find_in(text).map_err(missing)?;
    parts.metadata.ok_or_else(|| missing(serde_json::Error::missing_field("metadata")))
}

/// `metadata` and `spec` of an object; the default of one that it does not have. What comes behind the two is not read.
///
/// # Errors
/// Where the text is no object up to there, or a part cannot be read.
pub fn metadata_and_spec<'a, M, S>(text: &'a str) -> Result<(M, S), serde_json::Error>
where
    M: Deserialize<'a> + Default,
    S: Deserialize<'a> + Default,
{
    let mut parts = Parts::new(true);
    parts.find_in(text)?;
    Ok((parts.metadata.unwrap_or_default(), parts.spec.unwrap_or_default()))
}

/// Two members of an object, as far as they have been found.
struct Parts<M, S> {
    metadata: Option<M>,
    spec: Option<S>,
    with_spec: bool,
}

impl<'a, M: Deserialize<'a>, S: Deserialize<'a>> Parts<M, S> {
    const fn new(with_spec: bool) -> Self {
        Self { metadata: None, spec: None, with_spec }
    }

    const fn are_found(&self) -> bool {
        self.metadata.is_some() && (self.spec.is_some() || !self.with_spec)
    }

    fn find_in(&mut self, text: &'a str) -> Result<(), serde_json::Error> {
        let read = serde_json::Deserializer::from_str(text).deserialize_map(&mut *self);
        // A text can be left in its middle by an error only.
        if self.are_found() { Ok(()) } else { read }
    }
}

impl<'a, M: Deserialize<'a>, S: Deserialize<'a>> Visitor<'a> for &mut Parts<M, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of the API")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'a, str>>()? {
            match name.as_ref() {
                "metadata" => self.metadata = Some(map.next_value()?),
                "spec" if self.with_spec => self.spec = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if self.are_found() {
                return Err(A::Error::custom("the rest is not read"));
            }
        }
        Ok(())
    }
}

impl<'a> Raw<'a> {
    /// Reads key and revision of an object.
    ///
    /// # Errors
    /// Why it has none.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        let Metadata { name, namespace, revision } = head(text)?;
        if name.is_empty() {
            return Err("an object without a name".to_owned());
        }
        let key = if namespace.is_empty() { name.into_owned() } else { format!("{namespace}/{name}") };
        Ok(Self { key, revision: revision.into_owned(), text })
    }
}

/// A page of a listing.
pub(crate) struct Page<'a> {
    /// What the page shows, in turn.
    pub(crate) items: Vec<&'a str>,
    /// The revision that the whole listing shows.
    pub(crate) revision: String,
    /// Where the next page begins; empty at the end.
    pub(crate) next: String,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
struct ListMetadata {
    #[serde(default, rename = "resourceVersion")]
    revision: String,
    #[serde(default, rename = "continue")]
    next: String,
}

impl<'a> Page<'a> {
    /// Reads a page.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, String> {
        let list: List<'a> = serde_json::from_slice(body).map_err(|error| format!("no list: {error}"))?;
        let items = list.items.unwrap_or_default().into_iter().map(RawValue::get).collect();
        Ok(Self { items, revision: list.metadata.revision, next: list.metadata.next })
    }
}

/// A revision as a number that grows; 0 where it is none.
pub(super) fn number(revision: &str) -> i64 {
    revision.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_watch_is_its_object_with_its_key() {
        let line = br#"{"type":"MODIFIED","object":{"kind":"Service","metadata":{"name":"a\u0062","namespace":"x","resourceVersion":"7"}}}"#;
        match Message::parse(line) {
            Ok(Message::Put(raw)) => assert_eq!((raw.key.as_str(), raw.revision.as_str()), ("x/ab", "7")),
            other => panic!("{other:?}"),
        }
        let line = br#"{"type":"DELETED","object":{"metadata":{"name":"n1","resourceVersion":"8"}}}"#;
        assert!(matches!(Message::parse(line), Ok(Message::Delete(raw)) if raw.key == "n1"));
        let line =
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version: 1 (9)"}}"#;
        assert!(matches!(Message::parse(line), Ok(Message::Error { code: 410, .. })));
    }

    #[test]
    fn a_line_in_another_order_or_with_more_in_it_says_the_same() {
        for line in [
            r#"{"object":{"metadata":{"name":"n1","resourceVersion":"8"}},"type":"MODIFIED"}"#,
            r#" {"type":"MODIFIED","object":{"metadata":{"name":"n1","resourceVersion":"8"}}}"#,
            "{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"n1\",\"resourceVersion\":\"8\"}}}\r",
            r#"{"type":"MODIFIED","object":{"status":{"a":["}"]},"metadata":{"resourceVersion":"8","name":"n1"}}}"#,
        ] {
            let read = Message::parse(line.as_bytes());
            assert!(
                matches!(&read, Ok(Message::Put(raw)) if raw.key == "n1" && raw.revision == "8" && raw.text.ends_with('}')),
                "{line}: {read:?}"
            );
        }
    }

    #[test]
    fn of_an_object_no_more_is_read_than_metadata_and_spec_wherever_they_are() {
        type Both = (BTreeMap<String, String>, BTreeMap<String, u8>);
        let read = |text| metadata_and_spec(text).map_err(|error| error.to_string());
        let both: Both = (BTreeMap::from([("a".to_owned(), "b".to_owned())]), BTreeMap::from([("c".to_owned(), 1)]));
        assert_eq!(read(r#"{"kind":"x","metadata":{"a":"b"},"spec":{"c":1},"status":not read"#), Ok(both.clone()));
        assert_eq!(read(r#"{"spec":{"c":1},"status":{"metadata":7},"metadata":{"a":"b"}}"#), Ok(both));
        assert_eq!(read(r#"{"status":{}}"#), Ok(Both::default()));
        assert!(read(r#"{"metadata":{"a":"b"},"status":not"#).unwrap_err().contains("expected"));
        assert!(read(r#"{"metadata":{"a":"b"},"spec":{"c":300}}"#).unwrap_err().contains("u8"));
        assert!(read("[]").unwrap_err().contains("an object of the API"));
    }

    #[test]
    fn the_bookmark_with_the_annotation_ends_a_streaming_list() {
        for (annotations, ends) in [
            (r#""annotations":{"k8s.io/initial-events-end":"true"},"#, true),
            (r#""annotations":null,"#, false),
            ("", false),
        ] {
            let line =
                format!(r#"{{"type":"BOOKMARK","object":{{"metadata":{{{annotations}"resourceVersion":"9"}}}}}}"#);
            let expected = Message::Bookmark { revision: "9".to_owned(), ends_listing: ends };
            assert_eq!(Message::parse(line.as_bytes()), Ok(expected));
        }
    }

    #[test]
    fn a_page_is_its_items_as_text_and_where_the_next_one_begins() {
        let body = br#"{"kind":"NodeList","metadata":{"resourceVersion":"12","continue":"abc"},"items":[{"metadata":{"name":"n1"}},{}]}"#;
        let page = Page::parse(body).unwrap();
        assert_eq!((page.items.len(), page.revision.as_str(), page.next.as_str()), (2, "12", "abc"));
        assert_eq!(Raw::parse(page.items[0]).map(|raw| raw.key), Ok("n1".to_owned()));
        assert!(Raw::parse(page.items[1]).unwrap_err().contains("without metadata"));
        assert!(Page::parse(br#"{"items":null}"#).unwrap().items.is_empty());
    }

    #[test]
    fn what_is_no_event_says_why() {
        assert!(Message::parse(b"<html>").unwrap_err().contains("no event of a watch"));
        assert!(Message::parse(br#"{"type":"MOVED","object":{}}"#).unwrap_err().contains("MOVED"));
        assert_eq!(Raw::parse(r#"{"metadata":{}}"#), Err("an object without a name".to_owned()));
    }
}
