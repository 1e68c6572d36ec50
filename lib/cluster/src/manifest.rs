//! Kubernetes manifests as text: one or many objects in YAML or JSON.
//!
//! Pure. Invariant: a text is taken whole or refused whole, with the place of the first fault; equal objects
//! give equal bytes whatever the order of their fields, so that comparing bytes compares objects. Objects are
//! not interpreted beyond kind, namespace and name: what a Service means is the program's business.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `<kind>/<namespace>/<name>`, for example `Service/default/web`.
    pub key: String,
    /// The object in Kubernetes' own shape as JSON with sorted fields; `metadata.namespace` is always present.
    pub json: Vec<u8>,
}

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One JSON value.
    Json,
    /// YAML, any number of documents. JSON is a subset of it.
    Yaml,
}

impl Form {
    /// From a file name: `.json`, `.yaml` or `.yml`, as `kubectl` has it. Hidden files and editors' leavings
    /// (`~`, `.swp`, `#...#`) are none.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        if name.starts_with(['.', '#']) {
            return None;
        }
        match name.rsplit_once('.') {
            Some((_, "json")) => Some(Self::Json),
            Some((_, "yaml" | "yml")) => Some(Self::Yaml),
            _ => None,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Yaml => "YAML",
        })
    }
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML or JSON at all; the parser's words, with line and column.
    #[error("not valid {form}: {message}")]
    Syntax {
        /// What it was read as.
        form: Form,
        /// What the parser says.
        message: String,
    },
    /// A field is missing or of the wrong form.
    #[error("{place}: {message}; accepted: {accepted}")]
    Field {
        /// Where: `document 2: items[0].metadata.name`.
        place: String,
        /// What is wrong.
        message: String,
        /// The accepted form.
        accepted: &'static str,
    },
    /// The same object stands there twice.
    #[error("{place}: {key} stands in this text twice")]
    Twice {
        /// Where the second one is.
        place: String,
        /// Which object.
        key: String,
    },
}

/// The namespace of an object that names none, as for `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

/// Reads a manifest. Empty documents are skipped; a `List` (or `ServiceList` ...) stands for its items.
///
/// # Errors
/// At the first fault; see [`ManifestError`].
pub fn parse(form: Form, text: &[u8]) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Objects::default();
    for (index, document) in documents(form, text)?.into_iter().enumerate() {
        let place = format!("document {}", index.saturating_add(1));
        collect(document, &Place { document: place, path: String::new() }, &mut objects)?;
    }
    Ok(objects.list)
}

fn documents(form: Form, text: &[u8]) -> Result<Vec<Value>, ManifestError> {
    let syntax = |message: String| ManifestError::Syntax { form, message };
    match form {
        Form::Json if text.trim_ascii().is_empty() => Ok(Vec::new()),
        Form::Json => serde_json::from_slice(text).map(|value| vec![value]).map_err(|error| syntax(error.to_string())),
        Form::Yaml => {
            serde_saphyr::from_slice_multiple(text).map_err(|error| syntax(error.without_snippet().to_string()))
        }
    }
}

/// The objects read so far, in the order of the text.
#[derive(Default)]
struct Objects {
    list: Vec<Object>,
    keys: BTreeSet<String>,
}

/// Where in the text we are, for messages.
struct Place {
    document: String,
    path: String,
}

impl Place {
    fn item(&self, index: usize) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { document: self.document.clone(), path: format!("{}{dot}items[{index}]", self.path) }
    }

    fn field(&self, field: &str) -> String {
        match (self.path.is_empty(), field.is_empty()) {
            (true, true) => self.document.clone(),
            (true, false) => format!("{}: {field}", self.document),
            (false, true) => format!("{}: {}", self.document, self.path),
            (false, false) => format!("{}: {}.{field}", self.document, self.path),
        }
    }

    fn refuse(&self, field: &str, message: impl Into<String>, accepted: &'static str) -> ManifestError {
        ManifestError::Field { place: self.field(field), message: message.into(), accepted }
    }
}

fn collect(value: Value, place: &Place, objects: &mut Objects) -> Result<(), ManifestError> {
    let mut fields = match value {
        Value::Null => return Ok(()),
        Value::Object(fields) => fields,
        other => return Err(place.refuse("", format!("{} is not an object", shape(&other)), "an object")),
    };
    let kind = text(&fields, "kind", place, "kind")?.to_owned();
    if let Some(item_kind) = kind.strip_suffix("List")
        && fields.contains_key("items")
    {
        return expand(&fields, item_kind, place, objects);
    }
    let object = object(&mut fields, &kind, place)?;
    if !objects.keys.insert(object.key.clone()) {
        return Err(ManifestError::Twice { place: place.field(""), key: object.key });
    }
    objects.list.push(object);
    Ok(())
}

/// The API server leaves `kind` and `apiVersion` out of the items of a typed list.
fn expand(
    list: &Map<String, Value>,
    item_kind: &str,
    place: &Place,
    objects: &mut Objects,
) -> Result<(), ManifestError> {
    let items = match list.get("items") {
        Some(Value::Array(items)) => items.as_slice(),
        Some(Value::Null) | None => &[],
        Some(other) => {
            return Err(place.refuse("items", format!("{} is not a list", shape(other)), "a list of objects"));
        }
    };
    for (index, item) in items.iter().enumerate() {
        let mut item = item.clone();
        if let (Value::Object(fields), false) = (&mut item, item_kind.is_empty()) {
            fields.entry("kind").or_insert_with(|| item_kind.into());
            if let Some(version) = list.get("apiVersion") {
                fields.entry("apiVersion").or_insert_with(|| version.clone());
            }
        }
        collect(item, &place.item(index), objects)?;
    }
    Ok(())
}

fn object(fields: &mut Map<String, Value>, kind: &str, place: &Place) -> Result<Object, ManifestError> {
    let metadata = match fields.get_mut("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            return Err(place.refuse("metadata", format!("{} is not an object", shape(other)), "an object"));
        }
        None => return Err(place.refuse("metadata", "missing", "an object with name and namespace")),
    };
    let name = text(metadata, "name", place, "metadata.name")?.to_owned();
    if matches!(metadata.get("namespace"), None | Some(Value::Null)) {
        metadata.insert("namespace".into(), DEFAULT_NAMESPACE.into());
    }
    let namespace = text(metadata, "namespace", place, "metadata.namespace")?;
    let key = format!("{kind}/{namespace}/{name}");
    let json = serde_json::to_vec(&*fields)
        .map_err(|error| place.refuse("", format!("cannot be written as JSON: {error}"), "an object"))?;
    Ok(Object { key, json })
}

/// A field that becomes part of a key.
fn text<'a>(fields: &'a Map<String, Value>, name: &str, place: &Place, path: &str) -> Result<&'a str, ManifestError> {
    const ACCEPTED: &str = "letters, digits, `-` and `.`, 1..=253 of them";
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    match fields.get(name) {
        Some(Value::String(text)) if (1..=253).contains(&text.len()) && plain(text) => Ok(text),
        Some(Value::String(text)) => Err(place.refuse(path, format!("`{}`", text.escape_debug()), ACCEPTED)),
        Some(other) => Err(place.refuse(path, format!("{} is not text", shape(other)), ACCEPTED)),
        None => Err(place.refuse(path, "missing", ACCEPTED)),
    }
}

fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  clusterIP: 192.168.0.10
  ports: [{port: 80, targetPort: http, protocol: TCP}]
";

    fn keys(text: &str) -> Vec<String> {
        parse(Form::Yaml, text.as_bytes()).unwrap().into_iter().map(|object| object.key).collect()
    }

    fn refusal(text: &str) -> String {
        parse(Form::Yaml, text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn an_object_keeps_its_shape_and_gets_its_namespace() {
        let object = parse(Form::Yaml, WEB.as_bytes()).unwrap().remove(0);
        assert_eq!(object.key, "Service/default/web");
        let expected = r#"{"apiVersion":"v1","kind":"Service","metadata":{"labels":{"app":"web"},"name":"web","namespace":"default"},"spec":{"clusterIP":"192.168.0.10","ports":[{"port":80,"protocol":"TCP","targetPort":"http"}]}}"#;
        assert_eq!(String::from_utf8(object.json).unwrap(), expected);
    }

    #[test]
    fn documents_lists_and_typed_lists_are_expanded() {
        let text = "---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: Service, metadata: {name: a}}\n\
                    - {kind: EndpointSlice, metadata: {name: a-x1, namespace: shop}}\n---\n\
                    kind: ServiceList\napiVersion: v1\nitems:\n- metadata: {name: b}\n...\n";
        assert_eq!(keys(text), ["Service/default/a", "EndpointSlice/shop/a-x1", "Service/default/b"]);
        let list = parse(Form::Yaml, text.as_bytes()).unwrap();
        assert!(String::from_utf8_lossy(&list[2].json).contains(r#""apiVersion":"v1""#));
        assert!(keys("kind: List\nitems: []").is_empty());
        assert!(keys("").is_empty());
        assert!(keys("# only a comment\n").is_empty());
    }

    #[test]
    fn json_and_yaml_of_one_object_give_the_same_bytes() {
        let object = parse(Form::Yaml, WEB.as_bytes()).unwrap().remove(0);
        assert_eq!(parse(Form::Json, &object.json).unwrap(), std::slice::from_ref(&object));
        assert_eq!(parse(Form::Yaml, &object.json).unwrap(), [object]);
    }

    #[test]
    fn a_fault_is_told_with_place_and_accepted_form() {
        let cases = [
            ("kind: Service\n", "document 1: metadata: missing"),
            ("kind: Service\nmetadata: {}\n", "document 1: metadata.name: missing"),
            ("a: 1\n", "document 1: kind: missing"),
            ("- 1\n", "document 1: a list is not an object"),
            ("kind: Service\nmetadata: {name: a/b}\n", "document 1: metadata.name: `a/b`"),
            ("kind: Service\nmetadata: {name: 7}\n", "document 1: metadata.name: a number is not text"),
            ("kind: List\nitems: [{kind: Service, metadata: {name: a}}, {kind: 1}]\n", "document 1: items[1].kind"),
            ("kind: List\nitems: 3\n", "document 1: items: a number is not a list"),
            ("kind: X\nmetadata: {name: a}\n---\nkind: X\nmetadata: {name: a}\n", "document 2: X/default/a"),
            ("kind: [unclosed\n", "not valid YAML"),
            ("kind: x\n  bad: y\n", "not valid YAML"),
            ("kind: X\nkind: Y\n", "not valid YAML"),
        ];
        for (text, expected) in cases {
            let refusal = refusal(text);
            assert!(refusal.contains(expected), "{text:?}: {refusal}");
            assert!(!refusal.contains('\n'), "{refusal:?}");
        }
    }

    #[test]
    fn a_text_is_refused_whole() {
        let text = format!("{WEB}---\nkind: Service\n");
        assert!(parse(Form::Yaml, text.as_bytes()).is_err());
    }

    #[test]
    fn names_of_manifests_are_told_from_editors_leavings() {
        for (name, form) in [("a.json", Form::Json), ("a.yaml", Form::Yaml), ("a.b.yml", Form::Yaml)] {
            assert_eq!(Form::of(name), Some(form), "{name}");
        }
        for name in
            [".a.yaml", "a.yaml~", ".a.yaml.swp", "#a.yaml#", ".#a.yaml", "4913", "a.yaml.tmp", "README", "..data"]
        {
            assert_eq!(Form::of(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<Vec<u8>>(), yaml in "[-a-z:{}\\[\\]&*!|> \n\"']{0,60}") {
            let _ = parse(Form::Yaml, &text);
            let _ = parse(Form::Json, &text);
            let _ = parse(Form::Yaml, yaml.as_bytes());
        }
    }
}
