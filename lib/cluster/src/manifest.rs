//! Kubernetes manifests as text: one or many objects in YAML or JSON.
//!
//! Pure. Invariants: group and kind of an object are read first, then its name, so that an object of another kind may
//! be called whatever it likes; one bad element takes none of its neighbours along; equal objects give equal bytes
//! whatever the order of their fields, so that comparing bytes compares objects. Objects are not interpreted beyond
//! kind, namespace and name: what a Service means is the program's business.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use crate::{Problem, Words};

/// A kind of object that a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Versions of the group that the program reads.
    pub versions: &'static [&'static str],
    /// `Service`, `EndpointSlice`.
    pub name: &'static str,
    /// Its objects are in a namespace.
    pub namespaced: bool,
}

impl Kind {
    /// Whether an object that says `api_version` is of this kind. One that says none is taken for ours.
    #[must_use]
    pub fn has(&self, api_version: Option<&str>) -> bool {
        let Some(text) = api_version else { return true };
        let (group, version) = text.split_once('/').unwrap_or(("", text));
        group == self.group && self.versions.contains(&version)
    }
}

/// One object of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// `<kind>/<namespace>/<name>`, for example `Service/default/web`; without a namespace `<kind>/<name>`, as `Node/n1`.
    pub key: String,
    /// The object in Kubernetes' own shape as JSON with sorted fields; `metadata.namespace` is present where the kind has one.
    pub json: Vec<u8>,
}

/// What a text holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The objects of the wanted kinds, in the order of the text.
    pub objects: Vec<Object>,
    /// Elements that cannot be read; their field begins with the place: `document 2: items[0].metadata.name`.
    pub problems: Vec<Problem>,
    /// Objects that stand there twice, of which the first one counts, and where the second one is.
    pub duplicates: Vec<String>,
    /// The names that may stand in elements that cannot be read; of no meaning where there are none.
    pub words: Words,
    /// Objects of other kinds, as `ClusterRole system:coredns (rbac.authorization.k8s.io/v1)`.
    pub unused: Vec<String>,
}

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON values, any number of them.
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

/// The text is not YAML or JSON at all; the parser's words, with line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not valid {form}: {message}")]
pub struct InvalidText {
    form: Form,
    message: String,
}

/// The namespace of an object that names none, as for `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

/// Nesting that is read on any thread's stack.
const DEPTH: usize = 40;

/// Nesting that is read at all. Schemas of custom resources are the deepest objects in practice, with some 70 levels.
const MAX_DEPTH: usize = 128;

/// Stack for [`MAX_DEPTH`]: a development build takes 20 KiB for each level.
const STACK: usize = 16 << 20;

/// Reads a manifest. Empty documents are skipped; a `List` (or `ServiceList` ...) stands for its items.
///
/// # Errors
/// When the text is no YAML or JSON. What is wrong with single elements, and with single documents of several, is in
/// [`Manifest::problems`].
pub fn parse(form: Form, text: &[u8], kinds: &[Kind]) -> Result<Manifest, InvalidText> {
    let mut reader = Reader { kinds, manifest: Manifest::default(), keys: BTreeSet::new() };
    for (index, document) in documents(form, text)?.into_iter().enumerate() {
        let place = Place { document: format!("document {}", index.saturating_add(1)), path: String::new() };
        match document {
            Ok(document) => reader.read(document, &place),
            Err(refusal) => {
                reader.manifest.problems.push(place.refuse("", refusal.to_string(), "a document of its own"))
            }
        }
    }
    let mut manifest = reader.manifest;
    if !manifest.problems.is_empty() {
        manifest.words = Words::of(text);
    }
    Ok(manifest)
}

type Documents = Vec<Result<Value, InvalidText>>;

fn documents(form: Form, text: &[u8]) -> Result<Documents, InvalidText> {
    let invalid = |message: String| InvalidText { form, message };
    match form {
        Form::Json => json(text).map_err(invalid),
        Form::Yaml => match any_yaml(text) {
            Ok(found) => Ok(found.into_iter().map(Ok).collect()),
            Err(message) => one_by_one(text).ok_or_else(|| invalid(message)),
        },
    }
}

/// JSON values one after the other, as `kubectl` reads them. What follows a fault cannot be read.
fn json(text: &[u8]) -> Result<Documents, String> {
    let values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    let invalid = |error: serde_json::Error| InvalidText { form: Form::Json, message: error.to_string() };
    let mut documents: Documents = values.map(|value| value.map_err(invalid)).collect();
    match documents.pop() {
        Some(Err(refusal)) if documents.is_empty() => Err(refusal.message),
        last => {
            documents.extend(last);
            Ok(documents)
        }
    }
}

/// Reads the documents of a text that cannot be read as a whole each for itself; `None` when none of them can be read.
fn one_by_one(text: &[u8]) -> Option<Documents> {
    let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        // No scalar can hold such a line (YAML 1.2, 9.1.2: c-forbidden).
        let begins = line.strip_prefix(b"---").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace));
        match parts.last_mut() {
            Some(part) if !begins => part.extend_from_slice(line),
            _ => parts.push(line.to_vec()),
        }
    }
    let read = |part: Vec<u8>| match any_yaml(&part) {
        Ok(found) => found.into_iter().map(Ok).collect(),
        Err(message) => vec![Err(InvalidText { form: Form::Yaml, message })],
    };
    let documents: Documents = parts.into_iter().flat_map(read).collect();
    documents.iter().any(|document| document.as_ref().is_ok_and(Value::is_object)).then_some(documents)
}

/// YAML of whatever depth is accepted.
fn any_yaml(text: &[u8]) -> Result<Vec<Value>, String> {
    yaml(text, DEPTH).or_else(|_| deep_yaml(text))
}

fn yaml(text: &[u8], depth: usize) -> Result<Vec<Value>, String> {
    let found = serde_saphyr::from_slice_multiple_with_options(text, yaml_options(text.len(), depth));
    found.map_err(|error| yaml_reason(&error))
}

/// What a parser of YAML says, with line and column, and without what concerns whoever calls it.
#[must_use]
pub fn yaml_reason(error: &serde_saphyr::Error) -> String {
    error.without_snippet().to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "")
}

/// Reads a text on a stack of its own, since the parser calls itself for each level.
fn deep_yaml(text: &[u8]) -> Result<Vec<Value>, String> {
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || yaml(text, MAX_DEPTH));
        let reader = reader.map_err(|error| format!("no thread to read it: {error}"))?;
        reader.join().unwrap_or_else(|_| Err("the parser gave up".to_owned()))
    })
}

/// Budgets that grow with the text: whatever is written out is read, and only what aliases make of it is bounded.
fn yaml_options(size: usize, depth: usize) -> serde_saphyr::Options {
    // A node is at least a character and what separates it; begin and end of a collection are two events.
    let events = size.saturating_mul(2).saturating_add(1024);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: events,
            max_nodes: events,
            max_events: events,
            max_total_scalar_bytes: events,
            max_total_comment_bytes: events,
            max_depth: depth,
        },
    }
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

    fn refuse(&self, field: &str, found: impl Into<String>, accepted: &'static str) -> Problem {
        Problem::new(self.field(field), found, accepted)
    }
}

/// Collects what a text holds.
struct Reader<'a> {
    kinds: &'a [Kind],
    manifest: Manifest,
    keys: BTreeSet<String>,
}

impl Reader<'_> {
    fn read(&mut self, value: Value, place: &Place) {
        let found = match value {
            Value::Null => return,
            Value::Object(fields) => self.element(fields, place),
            other => Err(place.refuse("", format!("{} is not an object", shape(&other)), "an object")),
        };
        if let Err(problem) = found {
            self.manifest.problems.push(problem);
        }
    }

    fn element(&mut self, mut fields: Map<String, Value>, place: &Place) -> Result<(), Problem> {
        let kind = match fields.get("kind") {
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(place.refuse("kind", format!("{} is not text", shape(other)), "a kind")),
            None => return Err(place.refuse("kind", "missing", "a kind such as Service")),
        };
        if let Some(item_kind) = kind.strip_suffix("List")
            && fields.contains_key("items")
        {
            return self.expand(fields, item_kind, place);
        }
        let version = fields.get("apiVersion").and_then(Value::as_str);
        let Some(kind) = self.kinds.iter().find(|wanted| wanted.name == kind && wanted.has(version)) else {
            self.manifest.unused.push(title(&fields, &kind));
            return Ok(());
        };
        let object = object(&mut fields, kind, place)?;
        if self.keys.insert(object.key.clone()) {
            self.manifest.objects.push(object);
        } else {
            self.manifest.duplicates.push(format!("{}: {} stands in this text twice", place.field(""), object.key));
        }
        Ok(())
    }

    /// The API server leaves `kind` and `apiVersion` out of the items of a typed list.
    fn expand(&mut self, mut list: Map<String, Value>, item_kind: &str, place: &Place) -> Result<(), Problem> {
        let items = match list.remove("items") {
            Some(Value::Array(items)) => items,
            Some(Value::Null) | None => return Ok(()),
            Some(other) => {
                return Err(place.refuse("items", format!("{} is not a list", shape(&other)), "a list of objects"));
            }
        };
        for (index, mut item) in items.into_iter().enumerate() {
            if let (Value::Object(fields), false) = (&mut item, item_kind.is_empty()) {
                fields.entry("kind").or_insert_with(|| item_kind.into());
                if let Some(version) = list.get("apiVersion") {
                    fields.entry("apiVersion").or_insert_with(|| version.clone());
                }
            }
            self.read(item, &place.item(index));
        }
        Ok(())
    }
}

/// An object that is not used, as far as it can be named.
fn title(fields: &Map<String, Value>, kind: &str) -> String {
    const ENOUGH: usize = 80;
    let short = |text: &str| text.escape_debug().take(ENOUGH).collect::<String>();
    let name = fields.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
    let version = fields.get("apiVersion").and_then(Value::as_str);
    let mut text = short(kind);
    text.extend(name.map(|name| format!(" {}", short(name))));
    text.extend(version.map(|version| format!(" ({})", short(version))));
    text
}

fn object(fields: &mut Map<String, Value>, kind: &Kind, place: &Place) -> Result<Object, Problem> {
    let metadata = match fields.get_mut("metadata") {
        Some(Value::Object(metadata)) => metadata,
        Some(other) => {
            return Err(place.refuse("metadata", format!("{} is not an object", shape(other)), "an object"));
        }
        None => return Err(place.refuse("metadata", "missing", "an object with name and namespace")),
    };
    let name = text(metadata, "name", place, "metadata.name")?.to_owned();
    if !kind.namespaced {
        metadata.remove("namespace");
    } else if metadata.get("namespace").is_none_or(|value| value.is_null() || value.as_str() == Some("")) {
        metadata.insert("namespace".into(), DEFAULT_NAMESPACE.into());
    }
    let key = match kind.namespaced {
        true => format!("{}/{}/{name}", kind.name, text(metadata, "namespace", place, "metadata.namespace")?),
        false => format!("{}/{name}", kind.name),
    };
    let json = serde_json::to_vec(&*fields)
        .map_err(|error| place.refuse("", format!("cannot be written as JSON: {error}"), "an object"))?;
    Ok(Object { key, json })
}

/// A field that becomes part of a key.
fn text<'a>(fields: &'a Map<String, Value>, name: &str, place: &Place, path: &str) -> Result<&'a str, Problem> {
    const ACCEPTED: &str = "letters, digits, `-` and `.`, 1..=253 of them";
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    match fields.get(name) {
        Some(Value::String(text)) if (1..=253).contains(&text.len()) && plain(text) => Ok(text),
        Some(Value::String(text)) => Err(place.refuse(path, format!("`{}`", text.escape_debug()), ACCEPTED)),
        Some(other) => Err(place.refuse(path, format!("{} is not text", shape(other)), ACCEPTED)),
        None => Err(place.refuse(path, "missing", ACCEPTED)),
    }
}

const fn shape(value: &Value) -> &'static str {
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

    const KINDS: [Kind; 2] = [
        Kind { group: "", versions: &["v1"], name: "Service", namespaced: true },
        Kind { group: "discovery.k8s.io", versions: &["v1", "v1beta1"], name: "EndpointSlice", namespaced: true },
    ];

    const WEB: &str = "apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec:
  clusterIP: 192.168.0.10
  ports: [{port: 80, targetPort: http, protocol: TCP}]
";

    fn read(text: &str) -> Manifest {
        parse(Form::Yaml, text.as_bytes(), &KINDS).unwrap()
    }

    fn keys(text: &str) -> Vec<String> {
        read(text).objects.into_iter().map(|object| object.key).collect()
    }

    #[test]
    fn an_object_without_a_namespace_is_known_by_its_name_alone() {
        let kinds = [Kind { group: "", versions: &["v1"], name: "Node", namespaced: false }];
        for namespace in ["", ", namespace: default"] {
            let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1{namespace}}}\n");
            let found = parse(Form::Yaml, text.as_bytes(), &kinds).unwrap().objects;
            let [object] = &found[..] else { panic!("{found:?}") };
            let json = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#;
            assert_eq!((object.key.as_str(), object.json.as_slice()), ("Node/n1", json.as_bytes()));
        }
    }

    #[test]
    fn an_object_keeps_its_shape_and_gets_its_namespace() {
        let object = read(WEB).objects.remove(0);
        assert_eq!(object.key, "Service/default/web");
        let expected = r#"{"apiVersion":"v1","kind":"Service","metadata":{"labels":{"app":"web"},"name":"web","namespace":"default"},"spec":{"clusterIP":"192.168.0.10","ports":[{"port":80,"protocol":"TCP","targetPort":"http"}]}}"#;
        assert_eq!(String::from_utf8(object.json).unwrap(), expected);
        assert_eq!(keys("kind: Service\nmetadata: {name: web, namespace: ''}"), ["Service/default/web"]);
    }

    #[test]
    fn documents_lists_and_typed_lists_are_expanded() {
        let text = "---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: Service, metadata: {name: a}}\n\
                    - {kind: EndpointSlice, metadata: {name: a-x1, namespace: shop}}\n---\n\
                    kind: ServiceList\napiVersion: v1\nitems:\n- metadata: {name: b}\n...\n";
        assert_eq!(keys(text), ["Service/default/a", "EndpointSlice/shop/a-x1", "Service/default/b"]);
        assert!(String::from_utf8_lossy(&read(text).objects[2].json).contains(r#""apiVersion":"v1""#));
        assert!(keys("kind: List\nitems: []").is_empty());
        assert!(keys("").is_empty());
        assert!(keys("# only a comment\n").is_empty());
    }

    #[test]
    fn json_and_yaml_of_one_object_give_the_same_bytes() {
        let web = read(WEB);
        let json = &web.objects[0].json;
        assert_eq!(parse(Form::Json, json, &KINDS).unwrap(), web);
        assert_eq!(parse(Form::Yaml, json, &KINDS).unwrap(), web);
    }

    #[test]
    fn objects_of_other_kinds_are_named_whatever_they_look_like() {
        let others = [
            (
                "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: 'system:coredns'}}",
                "ClusterRole system:coredns (rbac.authorization.k8s.io/v1)",
            ),
            (
                "{apiVersion: apps/v1, kind: Deployment, metadata: {name: coredns, labels: 3}}",
                "Deployment coredns (apps/v1)",
            ),
            ("{apiVersion: v1, kind: Endpoints, metadata: {name: web}}", "Endpoints web (v1)"),
            ("{apiVersion: 7, kind: Kustomization, resources: [a.yaml]}", "Kustomization"),
            ("{apiVersion: v1, kind: ConfigMap, metadata: null}", "ConfigMap (v1)"),
            ("{apiVersion: example.com/v1, kind: AllowList, metadata: {name: a/b}}", "AllowList a/b (example.com/v1)"),
            ("{apiVersion: rbac/v1, kind: RoleList, items: [{metadata: {name: 'a:b'}}]}", "Role a:b (rbac/v1)"),
        ];
        for (other, title) in others {
            for text in [format!("{other}\n---\n{WEB}"), format!("{WEB}---\n{other}\n")] {
                let manifest = read(&text);
                assert_eq!(manifest.unused, [title]);
                assert_eq!((manifest.objects.len(), manifest.problems.len()), (1, 0), "{text}: {manifest:?}");
            }
        }
    }

    #[test]
    fn a_kind_is_known_by_its_group_and_version_too() {
        let service = |version: &str| format!("{{apiVersion: {version}, kind: Service, metadata: {{name: web}}}}");
        assert_eq!(keys(&service("v1")).len(), 1);
        for version in ["serving.knative.dev/v1", "v2", "example.com/v1", "''"] {
            let text = format!("{}\n---\n{}", service(version), service("v1"));
            assert_eq!((keys(&text).len(), read(&text).unused.len()), (1, 1), "{version}");
            assert!(read(&text).duplicates.is_empty(), "it is another object");
        }
        let knative = "{apiVersion: serving.knative.dev/v1, kind: ServiceList, items: [{metadata: {name: web}}]}";
        assert!(keys(knative).is_empty(), "the items of a typed list are of its group");
        let slice = |version: &str| format!("{{apiVersion: {version}, kind: EndpointSlice, metadata: {{name: web}}}}");
        assert_eq!(keys(&slice("discovery.k8s.io/v1")).len() + keys(&slice("discovery.k8s.io/v1beta1")).len(), 2);
        assert!(keys(&slice("v1")).is_empty());
    }

    #[test]
    fn a_bad_element_is_reported_with_its_place_and_takes_no_neighbour() {
        let cases = [
            ("kind: Service\n", "metadata: missing"),
            ("kind: Service\nmetadata: {}\n", "metadata.name: missing"),
            ("a: 1\n", "kind: missing"),
            ("kind: 1\n", "kind: a number is not text"),
            ("- 1\n", "a list is not an object"),
            ("kind: Service\nmetadata: {name: a/b}\n", "metadata.name: `a/b`"),
            ("kind: Service\nmetadata: {name: 7}\n", "metadata.name: a number is not text"),
            ("kind: Service\nmetadata: {name: a, namespace: 7}\n", "metadata.namespace: a number is not text"),
            ("kind: List\nitems: [{kind: Service, metadata: {name: a}}, {kind: 1}]\n", "items[1].kind"),
            (
                "kind: List\nitems: [{kind: Service, metadata: {name: a}}, {kind: List, items: [7]}]\n",
                "items[1].items[0]: ",
            ),
            ("kind: List\nitems: 3\n", "items: a number is not a list"),
        ];
        for (text, expected) in cases {
            let manifest = read(&format!("{text}---\n{WEB}---\n{text}"));
            let problems: Vec<_> = manifest.problems.iter().map(ToString::to_string).collect();
            assert_eq!(problems.len(), 2, "{text:?}: {problems:?}");
            assert!(
                problems[0].starts_with("document 1: ") && problems[0].contains(expected),
                "{text:?}: {problems:?}"
            );
            assert!(problems[1].starts_with("document 3: ") && !problems[1].contains('\n'), "{text:?}: {problems:?}");
            assert!(manifest.objects.iter().any(|object| object.key == "Service/default/web"), "{text:?}");
        }
    }

    #[test]
    fn of_an_object_that_stands_there_twice_the_first_one_counts() {
        let manifest = read(&format!("{WEB}---\nkind: Service\nmetadata: {{name: web}}\n"));
        assert_eq!(manifest.duplicates, ["document 2: Service/default/web stands in this text twice"]);
        assert!(String::from_utf8_lossy(&manifest.objects[0].json).contains("192.168.0.10"));
        assert_eq!((manifest.objects.len(), manifest.problems.len()), (1, 0));
    }

    #[test]
    fn what_is_no_text_of_its_form_is_refused_whole() {
        for text in ["kind: [unclosed\n", "kind: x\n  bad: y\n", "kind: X\nkind: Y\n"] {
            let refusal = parse(Form::Yaml, text.as_bytes(), &KINDS).unwrap_err().to_string();
            assert!(refusal.starts_with("not valid YAML") && !refusal.contains('\n'), "{text:?}: {refusal:?}");
        }
        assert!(parse(Form::Json, b"{", &KINDS).unwrap_err().to_string().starts_with("not valid JSON"));
    }

    #[test]
    fn json_objects_may_follow_each_other_and_a_torn_one_takes_none_of_those_before_it() {
        let read = |text: &str| parse(Form::Json, text.as_bytes(), &KINDS);
        let (web, api) =
            (String::from_utf8(super::tests::read(WEB).objects.remove(0).json).unwrap(), "{\"kind\": \"X\"}");
        let manifest = read(&format!("{web}\n{api}{}\n", web.replace("web", "www"))).unwrap();
        assert_eq!((manifest.objects.len(), manifest.unused.len(), manifest.problems.len()), (2, 1, 0));
        let torn = read(&format!("{web}\n{{\"kind\": ")).unwrap();
        assert_eq!((torn.objects.len(), torn.problems.len()), (1, 1));
        let problem = torn.problems[0].to_string();
        assert!(problem.starts_with("document 2: not valid JSON"), "{problem}");
        assert_eq!(read(" \n").unwrap(), Manifest::default());
        assert!(read("{").is_err());
    }

    #[test]
    fn a_document_that_is_no_yaml_is_reported_and_takes_no_neighbour() {
        let api = WEB.replace("web", "api");
        for text in [
            "kind: [unclosed\n",
            "kind: ConfigMap\n  bad: y\n",
            "kind: Secret\nkind: Secret\n",
            "{{ if .Values.web }}\n",
            "a: *nowhere\n",
        ] {
            for (whole, place) in [
                (format!("{WEB}---\n{text}---\n{api}"), "document 2: "),
                (format!("{text}--- # next\n{WEB}---\r\n{api}"), "document 1: "),
                (format!("---\n{WEB}---\n{api}...\n---\n{text}"), "document 3: "),
            ] {
                let manifest = read(&whole);
                assert_eq!(manifest.objects.len(), 2, "{whole}");
                let problems: Vec<_> = manifest.problems.iter().map(ToString::to_string).collect();
                assert_eq!(problems.len(), 1, "{whole}: {problems:?}");
                assert!(problems[0].starts_with(place) && problems[0].contains("not valid YAML"), "{problems:?}");
                assert!(!problems[0].contains('\n'), "{problems:?}");
            }
        }
    }

    #[test]
    fn a_text_of_the_largest_size_is_read_however_small_its_parts_are() {
        const LARGEST: usize = 16 << 20;
        let slice = "- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, metadata: {name: NAME, managedFields: [FIELDS]}}\n";
        let fields = format!("{{a: [0, {{b: }}], c: {}}}, ", "x".repeat(280)).repeat(500);
        let item = |n: usize| slice.replace("NAME", &format!("s-{n}")).replace("FIELDS", &fields);
        let mut list = "kind: List\napiVersion: v1\nitems:\n".to_owned();
        let mut count = 0;
        while list.len() + 2 * fields.len() < LARGEST {
            list += &item(count);
            count += 1;
        }
        // Some 360,000 nodes; more of them take a development build too long.
        assert_eq!(keys(&list).len(), count);
        let many = "---\n{kind: Service, metadata: {name: a}}\n".repeat(20_000);
        assert_eq!(read(&many).duplicates.len(), 19_999);
    }

    #[test]
    fn long_lines_long_texts_and_deep_schemas_are_read() {
        let long = "x".repeat(300_000);
        let deep = "{a: ".repeat(100) + "1" + &"}".repeat(100);
        let crd = format!("kind: CustomResourceDefinition\nmetadata: {{name: a.b}}\nspec: {deep}\n");
        let web = WEB.replace("labels: {app: web}", &format!("annotations: {{last-applied: '{long}', plain: {long}}}"));
        let manifest = read(&format!("{crd}---\n{web}"));
        assert_eq!((manifest.objects.len(), manifest.unused.len()), (1, 1));
    }

    #[test]
    fn aliases_cannot_make_a_text_grow_without_bound() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        assert!(parse(Form::Yaml, bomb.as_bytes(), &KINDS).is_err());
    }

    #[test]
    fn names_of_manifests_are_known_from_editors_leavings() {
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
            let _ = parse(Form::Yaml, &text, &KINDS);
            let _ = parse(Form::Json, &text, &KINDS);
            let _ = parse(Form::Yaml, yaml.as_bytes(), &KINDS);
        }

        /// Whatever stands around them, good objects are read.
        #[test]
        fn good_objects_are_read_among_any_others(
            elements in prop::collection::vec((0_u8..4, "[a-z:/A-Z]{1,8}"), 0..12),
        ) {
            let mut expected = BTreeSet::new();
            let mut text = String::new();
            for (index, (kind, name)) in elements.iter().enumerate() {
                text += &match kind {
                    0 => {
                        expected.insert(format!("Service/default/s{index}"));
                        format!("---\nkind: Service\nmetadata: {{name: s{index}}}\n")
                    }
                    1 => format!("---\nkind: ClusterRole\nmetadata: {{name: '{name}'}}\n"),
                    2 => format!("---\nkind: Service\napiVersion: example.com/v1\nmetadata: {{name: '{name}'}}\n"),
                    _ => format!("---\nkind: Service\nmetadata: ['{name}']\n"),
                };
            }
            let manifest = read(&text);
            let found: BTreeSet<String> = manifest.objects.into_iter().map(|object| object.key).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
