//! `Fields`: the fields of one map, taken by name; what nobody takes is named in the end.
//!
//! Invariant: every mistake becomes a finding and none ends the reading: a field that cannot be read is missing from the
//! value, never from the findings.

use std::collections::BTreeMap;

use super::tree::Content;
use super::{Entry, Findings, Form, Node, Position};

/// A value with the place that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located<T> {
    /// The place.
    pub(crate) at: Position,
    /// The value.
    pub(crate) value: T,
}

/// The fields of a map that are still to be taken.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    at: Position,
    path: String,
    left: BTreeMap<&'a str, &'a Entry>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of `node`, which `path` leads to; `None` when it is no map.
    pub(crate) fn of(node: &'a Node, path: &str, findings: &mut Findings) -> Option<Self> {
        let map = entries(node, path, "a map of fields", findings)?;
        let left = map.iter().map(|entry| (entry.key.as_str(), *entry)).collect();
        Some(Self { at: node.at, path: path.to_owned(), left, known: Vec::new() })
    }

    /// What leads to the field `name`.
    pub(crate) fn path(&self, name: &str) -> String {
        joined(&self.path, name)
    }

    /// The field `name`, unless it is absent or empty.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        let entry = self.left.remove(name)?;
        (entry.value.content != Content::Null).then_some(&entry.value)
    }

    /// The field `name`, which must be there.
    pub(crate) fn require(&mut self, name: &'static str, accepted: &str, findings: &mut Findings) -> Option<&'a Node> {
        let found = self.take(name);
        if found.is_none() {
            findings.error(self.at, &self.path(name), "it is missing", accepted);
        }
        found
    }

    /// The value of the field `name`, if it is there and can be read.
    pub(crate) fn optional<T: Form>(&mut self, name: &'static str, findings: &mut Findings) -> Option<Located<T>> {
        let path = self.path(name);
        scalar(self.take(name)?, &path, findings)
    }

    /// The value of the field `name`, which must be there, if it can be read.
    pub(crate) fn required<T: Form>(&mut self, name: &'static str, findings: &mut Findings) -> Option<Located<T>> {
        let path = self.path(name);
        scalar(self.require(name, T::ACCEPTED, findings)?, &path, findings)
    }

    /// Names what nobody has taken.
    pub(crate) fn finish(self, findings: &mut Findings) {
        let known = format!("one of {}", self.known.join(", "));
        for (name, entry) in &self.left {
            findings.error(entry.at, &joined(&self.path, name), "no such field", known.clone());
        }
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The entries of a map, each key once; `None` when it is no map. A key that stands again is a finding.
pub(crate) fn entries<'a>(
    node: &'a Node,
    path: &str,
    accepted: &str,
    findings: &mut Findings,
) -> Option<Vec<&'a Entry>> {
    let Content::Map(all) = &node.content else {
        let field = if path.is_empty() { "the file" } else { path };
        findings.error(node.at, field, node.content.kind(), accepted);
        return None;
    };
    let mut first: BTreeMap<&str, Position> = BTreeMap::new();
    let mut unique = Vec::new();
    for entry in all {
        if let Some(before) = first.get(entry.key.as_str()) {
            let found = format!("it stands there twice, first in line {}", before.line);
            findings.error(entry.at, &joined(path, &entry.key), found, "once");
        } else {
            first.insert(&entry.key, entry.at);
            unique.push(entry);
        }
    }
    Some(unique)
}

/// The elements of a list; a value that is no list stands for a list of one.
pub(crate) fn elements(node: &Node) -> &[Node] {
    match &node.content {
        Content::List(nodes) => nodes,
        _ => std::slice::from_ref(node),
    }
}

/// The value of `node`, which `path` leads to.
pub(crate) fn scalar<T: Form>(node: &Node, path: &str, findings: &mut Findings) -> Option<Located<T>> {
    let Content::Scalar(text) = &node.content else {
        findings.error(node.at, path, node.content.kind(), T::ACCEPTED);
        return None;
    };
    match T::read(text) {
        Ok(value) => Some(Located { at: node.at, value }),
        Err(why) if why.is_empty() => {
            findings.error(node.at, path, format!("{text:?}"), T::ACCEPTED);
            None
        }
        Err(why) => {
            findings.error(node.at, path, format!("{text:?}: {why}"), T::ACCEPTED);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn printed(findings: Findings) -> Vec<String> {
        findings.sorted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_named_with_its_place_and_the_others_are_read() {
        let node = parse("port: 70000\nname: 5\nname: 6\nprot: 1\nempty:\n").unwrap();
        let mut findings = Findings::default();
        let mut fields = Fields::of(&node, "top", &mut findings).unwrap();
        assert_eq!(fields.required::<u16>("port", &mut findings), None);
        assert_eq!(fields.required::<u16>("name", &mut findings).map(|name| name.value), Some(5));
        assert_eq!(fields.required::<u16>("empty", &mut findings), None);
        assert_eq!(fields.optional::<u16>("absent", &mut findings), None);
        fields.finish(&mut findings);
        assert_eq!(
            printed(findings),
            [
                "1:1: top.empty: it is missing; accepted: a port from 1 to 65535",
                "1:7: top.port: \"70000\"; accepted: a port from 1 to 65535",
                "3:1: top.name: it stands there twice, first in line 2; accepted: once",
                "4:1: top.prot: no such field; accepted: one of port, name, empty, absent",
            ]
        );
    }

    #[test]
    fn what_is_no_map_and_no_scalar_is_named_by_its_kind() {
        let node = parse("[1, 2]").unwrap();
        let mut findings = Findings::default();
        assert!(Fields::of(&node, "hosts", &mut findings).is_none());
        assert!(scalar::<u16>(&node, "port", &mut findings).is_none());
        assert_eq!(
            printed(findings),
            [
                "1:1: hosts: a list of 2; accepted: a map of fields",
                "1:1: port: a list of 2; accepted: a port from 1 to 65535",
            ]
        );
        assert_eq!(elements(&node).len(), 2);
    }
}
