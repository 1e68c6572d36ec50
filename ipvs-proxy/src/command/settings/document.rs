//! A KubeProxyConfiguration as text: YAML or JSON in, values by field out, and back.
//!
//! Pure. Invariant: one bad field takes none of its neighbours along; what is null or empty counts as absent, as for
//! kube-proxy.

use std::collections::BTreeMap;

use cluster::Problem;
use serde_json::{Map, Value};

use super::field::{Field, Form};
use super::fields::{FIELDS, OWN};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Nesting that is read; the configuration itself has four levels.
const DEPTH: usize = 40;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Document {
    /// Values by the path of their field.
    pub(crate) values: BTreeMap<&'static str, String>,
    /// Fields that kube-proxy does not have either.
    pub(crate) unknown: Vec<String>,
    /// What is wrong, each with its field.
    pub(crate) problems: Vec<Problem>,
}

/// Reads a configuration.
pub(crate) fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: DEPTH } };
    match serde_saphyr::from_str_with_options::<Value>(text, options) {
        Ok(Value::Object(mut fields)) => {
            document.head(&mut fields);
            document.object("", &fields);
        }
        Ok(_) => document.problem("the file", "no object", "one KubeProxyConfiguration, YAML or JSON"),
        Err(error) => {
            let reason = cluster::manifest::yaml_reason(&error);
            document.problem(
                "the file",
                &format!("not valid YAML: {reason}"),
                "one KubeProxyConfiguration, YAML or JSON",
            );
        }
    }
    document
}

impl Document {
    fn problem(&mut self, path: &str, found: &str, accepted: &str) {
        self.problems.push(Problem::new(path, found, accepted));
    }

    /// Reads what the object is.
    fn head(&mut self, fields: &mut Map<String, Value>) {
        for (name, accepted) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            match fields.remove(name) {
                Some(Value::String(text)) if text == accepted => {}
                Some(other) => self.problem(name, &other.to_string(), accepted),
                None => self.problem(name, "missing", accepted),
            }
        }
    }

    fn object(&mut self, path: &str, fields: &Map<String, Value>) {
        for (name, value) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if let Some(field) = FIELDS.iter().find(|field| field.path == path) {
                self.value(field, value);
            } else if is_group(&path) {
                match value {
                    Value::Object(fields) => self.object(&path, fields),
                    Value::Null => {}
                    other => self.problem(&path, &other.to_string(), "an object"),
                }
            } else {
                self.unknown.push(path);
            }
        }
    }

    fn value(&mut self, field: &Field, value: &Value) {
        match text_of(field.form, value) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => drop(self.values.insert(field.path, text)),
            Err(()) => self.problem(field.path, &value.to_string(), &field.form.accepted()),
        }
    }
}

/// Whether fields stand below `path`.
fn is_group(path: &str) -> bool {
    FIELDS.iter().any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The text of a value, as a flag would have it; empty for null.
fn text_of(form: Form, value: &Value) -> Result<String, ()> {
    match (form, value) {
        (_, Value::Null) => Ok(String::new()),
        (Form::Switch, Value::Bool(value)) => Ok(value.to_string()),
        (Form::Number { .. } | Form::Rate | Form::TimeOrNanoseconds | Form::Quantity, Value::Number(number)) => {
            Ok(number.to_string())
        }
        (Form::NetworkList | Form::NodeAddresses, Value::Array(words)) => {
            joined(words.iter().map(|word| word.as_str()))
        }
        (Form::Gates, Value::Object(gates)) => {
            joined(gates.iter().map(|(name, value)| Some(format!("{name}={}", value.as_bool()?))))
        }
        (Form::Modules, Value::Array(modules)) => joined(modules.iter().map(|module| {
            Some(format!("{}={}", module.get("filePattern")?.as_str()?, module.get("verbosity")?.as_u64()?))
        })),
        (
            Form::Text
            | Form::Time
            | Form::TimeOrNanoseconds
            | Form::Quantity
            | Form::Address
            | Form::Endpoint
            | Form::OneOf(_)
            | Form::Networks,
            Value::String(text),
        ) => Ok(text.clone()),
        _ => Err(()),
    }
}

fn joined<T: Into<String>>(words: impl Iterator<Item = Option<T>>) -> Result<String, ()> {
    let words: Option<Vec<String>> = words.map(|word| word.map(Into::into)).collect();
    words.map(|words| words.join(",")).ok_or(())
}

/// The text of a configuration with the values that `value` gives for the fields.
///
/// # Errors
/// When the text cannot be written, which no value makes happen.
pub(crate) fn write(value: impl Fn(&Field) -> String) -> Result<String, serde_saphyr::ser_error::Error> {
    let mut root = Map::new();
    root.insert("apiVersion".to_owned(), API_VERSION.into());
    root.insert("kind".to_owned(), KIND.into());
    let is_written = |field: &&Field| {
        let is_unused = OWN.contains(&field.path) && value(field).is_empty();
        !field.path.is_empty() && !is_unused
    };
    for field in FIELDS.iter().filter(is_written) {
        let mut place = &mut root;
        let mut names = field.path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                place.insert(name.to_owned(), value_of(field.form, &value(field)));
                break;
            }
            let group = place.entry(name).or_insert_with(|| Map::new().into());
            let Value::Object(group) = group else { break };
            place = group;
        }
    }
    serde_saphyr::to_string(&Value::Object(root))
}

/// The value of a flag's text.
fn value_of(form: Form, text: &str) -> Value {
    let words = || text.split(',').filter(|word| !word.is_empty());
    match form {
        _ if text.is_empty() && !matches!(form, Form::Text | Form::OneOf(_) | Form::Endpoint | Form::Networks) => {
            Value::Null
        }
        Form::Switch => (text == "true").into(),
        Form::Number { .. } => text.parse::<i64>().map_or(Value::Null, Value::from),
        Form::Rate => text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from)).unwrap_or_default(),
        Form::NetworkList | Form::NodeAddresses => words().collect(),
        Form::Gates => Value::Object(
            words().filter_map(|word| word.split_once('=')).map(|(name, on)| (name.to_owned(), (on == "true").into())).collect(),
        ),
        Form::Modules => words()
            .filter_map(|word| word.split_once('='))
            .map(|(pattern, level)| {
                serde_json::json!({"filePattern": pattern, "verbosity": level.parse::<u64>().unwrap_or_default()})
            })
            .collect(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn read(text: &str) -> Document {
        parse(&format!("{HEAD}{text}"))
    }

    #[test]
    fn values_are_those_that_flags_would_have() {
        let document = read(
            "clusterCIDR: 172.7.0.0/16\nipvs: {scheduler: wrr, tcpTimeout: 15m, excludeCIDRs: [10.0.0.0/8, 10.1.0.0/16]}\n\
             conntrack:\n  maxPerCore: 0\n  tcpBeLiberal: true\nfeatureGates: {A: true, B: false}\n\
             logging: {verbosity: 4, flushFrequency: 5000000000, vmodule: [{filePattern: 'work*', verbosity: 2}]}\n",
        );
        assert_eq!(document.problems, []);
        assert_eq!(document.unknown, Vec::<String>::new());
        let values: Vec<_> = document.values.iter().map(|(path, text)| format!("{path}={text}")).collect();
        assert_eq!(
            values,
            [
                "clusterCIDR=172.7.0.0/16",
                "conntrack.maxPerCore=0",
                "conntrack.tcpBeLiberal=true",
                "featureGates=A=true,B=false",
                "ipvs.excludeCIDRs=10.0.0.0/8,10.1.0.0/16",
                "ipvs.scheduler=wrr",
                "ipvs.tcpTimeout=15m",
                "logging.flushFrequency=5000000000",
                "logging.verbosity=4",
                "logging.vmodule=work*=2",
            ]
        );
    }

    #[test]
    fn every_field_of_another_shape_is_named_with_what_is_accepted() {
        let document = read(
            "ipvs: {tcpTimeout: 900, strictARP: 'yes', excludeCIDRs: 10.0.0.0/8}\nconntrack: 7\noomScoreAdj: low\n\
             nodePortAddresses: [1]\nfeatureGates: {A: 1}\nclusterCIDR: [172.7.0.0/16]\n",
        );
        let problems: Vec<_> = document.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "clusterCIDR: [\"172.7.0.0/16\"]; accepted: networks such as 172.7.0.0/16, separated by commas",
                "conntrack: 7; accepted: an object",
                "featureGates: {\"A\":1}; accepted: names with true or false",
                "ipvs.excludeCIDRs: \"10.0.0.0/8\"; accepted: a list of networks such as 172.7.0.0/16",
                "ipvs.strictARP: \"yes\"; accepted: true or false",
                "ipvs.tcpTimeout: 900; accepted: a time such as 30s, 15m or 1h30m",
                "nodePortAddresses: [1]; accepted: a list of networks such as 10.4.7.0/24, or one of the words primary and all, alone",
                "oomScoreAdj: \"low\"; accepted: a number from -1000 to 1000",
            ]
        );
    }

    #[test]
    fn unknown_fields_are_named_with_their_place_and_the_rest_is_read() {
        let document = read("ipvs: {schedular: wrr, udpTimeout: 5s}\nclusterCidr: 172.7.0.0/16\nwinkernel: null\n");
        assert_eq!(document.unknown, ["clusterCidr", "ipvs.schedular"]);
        assert_eq!(document.values.len(), 1);
        assert_eq!(document.problems, []);
    }

    #[test]
    fn a_text_that_is_no_configuration_says_what_it_is() {
        for (text, field) in [
            ("kind: KubeProxyConfiguration\n", "apiVersion: missing"),
            ("apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n", "apiVersion: \"kubeproxy"),
            ("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Service\n", "kind: \"Service\""),
            ("", "the file: no object"),
            ("- 1\n", "the file: no object"),
            ("{", "the file: not valid YAML"),
        ] {
            let problems = parse(text).problems;
            assert!(problems.iter().any(|problem| problem.to_string().starts_with(field)), "{text:?}: {problems:?}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let text = write(|field| field.default.to_owned()).unwrap();
        let document = parse(&text);
        assert_eq!((document.problems, document.unknown), (Vec::new(), Vec::new()));
        for field in FIELDS.iter().filter(|field| !field.path.is_empty()) {
            assert_eq!(document.values.get(field.path).map_or("", String::as_str), field.default, "{}", field.path);
        }
    }
}
