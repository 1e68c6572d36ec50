//! The texts of lists and watches: envelope, key and revision, and the object's own text, which is somebody else's to read.
//!
//! Invariant: what cannot be read of one object is that object's fault alone; its key comes from its metadata.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Deserialize;
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
struct Head<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

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

fn head(text: &str) -> Result<Metadata<'_>, String> {
    serde_json::from_str(text)
        .map(|head: Head<'_>| head.metadata)
        .map_err(|error| format!("an object without metadata: {error}"))
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
