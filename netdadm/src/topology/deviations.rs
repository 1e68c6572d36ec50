//! `Deviations`: what a cluster has otherwise than others: flags and settings of components, images, files that are only
//! written when somebody asks for them.
//!
//! Invariant: what is here can stand in a unit of systemd and in YAML without an escape.

use std::collections::BTreeMap;

use super::{Component, Folder, Switch};
use crate::document::{Fields, Findings, Form, Located, Node, elements, entries, scalar};

/// What a cluster has otherwise than others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deviations {
    /// The folder of CAs that are there already, as kubeadm's `/etc/kubernetes/pki`.
    pub(crate) pki: Option<Located<Folder>>,
    /// True when /etc/hosts is written, whole.
    pub(crate) etc_hosts: bool,
    /// How many servers of the DNS there are.
    pub(crate) dns_replicas: Option<u16>,
    /// Their image.
    pub(crate) dns_image: Option<String>,
    /// The image that holds the namespaces of a Pod.
    pub(crate) pause: Option<String>,
    /// Settings of the kubelet's configuration.
    pub(crate) kubelet: BTreeMap<String, Setting>,
    flags: BTreeMap<Component, BTreeMap<String, String>>,
}

/// A setting of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A number, a truth value or a text.
    Scalar(Value),
    /// Settings below it.
    Map(BTreeMap<String, Value>),
    /// A list of them.
    List(Vec<Value>),
}

/// A value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    /// What was written.
    pub(crate) text: String,
    /// True when it was written in quotes: no number, whatever it says.
    pub(crate) quoted: bool,
}

impl Deviations {
    /// The flags of `component`, in the order of their names.
    pub(crate) fn flags(&self, component: Component) -> impl Iterator<Item = (&str, &str)> {
        let found = self.flags.get(&component).into_iter().flatten();
        found.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A setting of the kubelet that is one value.
    pub(crate) fn kubelet_scalar(&self, name: &str) -> Option<&str> {
        match self.kubelet.get(name)? {
            Setting::Scalar(value) => Some(&value.text),
            Setting::Map(_) | Setting::List(_) => None,
        }
    }

    /// Takes its fields out of a topology's.
    pub(super) fn take(fields: &mut Fields<'_>, findings: &mut Findings) -> Self {
        let pki = fields.optional("pki", findings);
        let etc_hosts = fields.optional::<Switch>("etcHosts", findings).is_some_and(|found| found.value == Switch::On);
        let pause = fields.optional::<Image>("pauseImage", findings).map(|found| found.value.0);
        let mut deviations = Self { pki, etc_hosts, pause, ..Self::default() };
        if let Some(mut dns) = fields.take("dns").and_then(|node| Fields::of(node, "dns", findings)) {
            deviations.dns_replicas = dns.optional::<Replicas>("replicas", findings).map(|found| found.value.0);
            deviations.dns_image = dns.optional::<Image>("image", findings).map(|found| found.value.0);
            dns.finish(findings);
        }
        if let Some(node) = fields.take("kubelet") {
            deviations.kubelet = settings(node, findings);
        }
        if let Some(node) = fields.take("flags") {
            deviations.flags = flags(node, findings);
        }
        deviations
    }
}

fn flags(node: &Node, findings: &mut Findings) -> BTreeMap<Component, BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in entries(node, "flags", "a map of components", findings).unwrap_or_default() {
        let path = format!("flags.{}", entry.key);
        match Component::read(&entry.key) {
            Ok(component) => {
                let of = |_: &Node, value: FlagValue| value.0;
                drop(found.insert(component, values::<FlagName, _, _>(&entry.value, &path, findings, of)));
            }
            Err(_) => findings.error(entry.at, &path, "no such component", Component::ACCEPTED),
        }
    }
    found
}

fn settings(node: &Node, findings: &mut Findings) -> BTreeMap<String, Setting> {
    let mut found = BTreeMap::new();
    for entry in entries(node, "kubelet", "a map of settings", findings).unwrap_or_default() {
        let path = format!("kubelet.{}", entry.key);
        if FieldName::read(&entry.key).is_err() || RENDERED.contains(&entry.key.as_str()) {
            findings.error(entry.at, &path, "it is no field to set here", FieldName::ACCEPTED);
            continue;
        }
        let value = &entry.value;
        let setting = match &value.content {
            crate::document::Content::Map(_) => {
                Setting::Map(values::<FieldName, _, _>(value, &path, findings, Value::of))
            }
            crate::document::Content::List(_) => {
                let mut read = |one| Some(Value::of(one, scalar(one, &path, findings)?.value));
                Setting::List(elements(value).iter().filter_map(&mut read).collect())
            }
            _ => match scalar(value, &path, findings) {
                Some(one) => Setting::Scalar(Value::of(value, one.value)),
                None => continue,
            },
        };
        found.insert(entry.key.clone(), setting);
    }
    found
}

impl Value {
    fn of(node: &Node, read: FieldValue) -> Self {
        Self { text: read.0, quoted: node.quoted }
    }
}

/// A map of names of the form `N` with what `of` makes of their values of the form `V`.
fn values<N: Form + Into<String>, V: Form, T>(
    node: &Node,
    path: &str,
    findings: &mut Findings,
    of: fn(&Node, V) -> T,
) -> BTreeMap<String, T> {
    let mut found = BTreeMap::new();
    for entry in entries(node, path, "a map of names and values", findings).unwrap_or_default() {
        let path = format!("{path}.{}", entry.key);
        let Ok(name) = N::read(&entry.key) else {
            findings.error(entry.at, &path, "it is no name", N::ACCEPTED);
            continue;
        };
        if let Some(value) = scalar::<V>(&entry.value, &path, findings) {
            found.insert(name.into(), of(&entry.value, value.value));
        }
    }
    found
}

/// Fields of the kubelet's configuration that follow from the topology.
const RENDERED: [&str; 14] = [
    "apiVersion",
    "kind",
    "authentication",
    "authorization",
    "tlsCertFile",
    "tlsPrivateKeyFile",
    "port",
    "readOnlyPort",
    "healthzBindAddress",
    "healthzPort",
    "clusterDomain",
    "clusterDNS",
    "containerRuntimeEndpoint",
    "staticPodPath",
];

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $accepted:literal, $check:expr;)*) => {$(
        $(#[$doc])*
        struct $name(String);

        impl Form for $name {
            const ACCEPTED: &str = $accepted;

            fn read(text: &str) -> Result<Self, String> {
                let plain: fn(&str) -> bool = $check;
                if plain(text) { Ok(Self(text.to_owned())) } else { Err(String::new()) }
            }
        }

        impl From<$name> for String {
            fn from(found: $name) -> Self {
                found.0
            }
        }
    )*};
}

texts! {
    /// A value of a flag; systemd reads more into quotes, `$` and `%`.
    FlagValue: "printable characters without spaces, quotes, `\\`, `$` and `%`", |text| {
        text.len() <= 1024 && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'`\\$%".contains(&byte))
    };
    /// A value of a setting.
    FieldValue: "printable characters without quotes and `\\`", |text| {
        let inside = |byte: u8| byte == b' ' || byte.is_ascii_graphic() && !b"\"'`\\".contains(&byte);
        text.len() <= 1024 && text.bytes().all(inside)
    };
    /// The name of a flag.
    FlagName: "a flag without its dashes, such as audit-log-path", |text| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        text.len() <= 100 && text.starts_with(|first: char| first.is_ascii_lowercase()) && text.bytes().all(inside)
    };
    /// The name of a field.
    FieldName: "a field of KubeletConfiguration that does not follow from the topology, such as failSwapOn", |text| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
        text.len() <= 100 && text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.bytes().all(inside)
    };
    /// The name of an image.
    Image: "an image such as example.org/coredns:1.11.1", |text| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"./:_-@".contains(&byte);
        (1..=255).contains(&text.len()) && text.bytes().all(inside)
    };
}

/// How many of something there are.
struct Replicas(u16);

impl Form for Replicas {
    const ACCEPTED: &str = "a number from 1 to 100";

    fn read(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(|count| (1..=100).contains(count)).map(Self).ok_or_else(String::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    const REFERENCE: &str = include_str!("../../../configs/clusters/reference.yaml");

    #[test]
    fn what_deviates_is_read_and_what_cannot_stand_in_a_unit_is_refused() {
        let deviating = format!(
            "{REFERENCE}pki: /etc/kubernetes/pki\netcHosts: true\npauseImage: example.org/pause:3.9\n\
             dns: {{replicas: 3, image: example.org/coredns:1.11.1}}\n\
             flags: {{kube-apiserver: {{audit-log-path: /var/log/audit.log}}}}\n\
             kubelet: {{failSwapOn: false, evictionHard: {{nodefs.available: 1%}}, enforceNodeAllocatable: []}}\n"
        );
        let topology = check::text(&deviating).topology.unwrap();
        let deviations = topology.deviations;
        assert!(deviations.etc_hosts);
        assert_eq!(
            (deviations.dns_replicas, deviations.dns_image.as_deref()),
            (Some(3), Some("example.org/coredns:1.11.1"))
        );
        let flags: Vec<_> = deviations.flags(Component::ApiServer).collect();
        assert_eq!(flags, [("audit-log-path", "/var/log/audit.log")]);
        assert_eq!(deviations.kubelet_scalar("failSwapOn"), Some("false"));
        assert_eq!(deviations.kubelet["enforceNodeAllocatable"], Setting::List(Vec::new()));
        for (wrong, said) in [
            ("etcHosts: maybe", "accepted: true or false"),
            ("pki: pki", "accepted: an absolute folder"),
            ("dns: {replicas: 0}", "accepted: a number from 1 to 100"),
            ("pauseImage: a b", "accepted: an image"),
            ("flags: {etcd: {name: a}}", "accepted: kube-apiserver"),
            ("flags: {kubelet: {--root-dir: /x}}", "it is no name"),
            ("flags: {kubelet: {root-dir: \"/x y\"}}", "accepted: printable characters"),
            ("flags: {kubelet: {root-dir: 1%}}", "accepted: printable characters"),
            ("kubelet: {clusterDNS: 10.0.0.1}", "does not follow from the topology"),
            ("kubelet: [1]", "a list of 1"),
        ] {
            let findings = check::text(&format!("{REFERENCE}{wrong}\n")).findings;
            assert!(findings.iter().any(|finding| finding.to_string().contains(said)), "{wrong}: {findings:?}");
        }
    }
}
