//! What anybody may write into the store, a file, a command line or a packet: the parsers for fuzzing, each by the name of its
//! corpus in `fuzz/`.
//!
//! Invariant: every input is answered, by a value or by reasons of bounded length; what is read is written as it was read.

use std::ffi::OsString;

use cluster::etcd::TlsMaterial;
use netstate::family::{IpFamily, PerFamily};
use serde_json::Value;

use crate::choose::policy::Policy;
use crate::command::args::Invocation;
use crate::command::config::Config;
use crate::command::go;
use crate::doctor::{facts, kept, packet};
use crate::format::edit::Change;
use crate::format::lease::{LeaseAttrs, read_lease};
use crate::format::net_conf::NetConf;
use crate::format::node::{AnnotationPrefix, OwnNode, annotations_patch};
use crate::plan::backend::BackendAttrs;
use crate::run::claim::Claim;
use crate::run::status;
use crate::source::record::LeaseRecord;
use crate::tools::docker_opts;
use crate::trace::target::Target;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 14] = [
    ("arguments", arguments),
    ("claim", claim),
    ("docker_opts", variables),
    ("edit", edit),
    ("extension", extension),
    ("lease", lease),
    ("lease_record", lease_record),
    ("net_conf", net_conf),
    ("netstat", netstat),
    ("node", node),
    ("probe", probe),
    ("probes", probes),
    ("status", status_file),
    ("words", words),
];

/// The longest reason, in bytes: an operator reads it in a log and in the status.
const LONGEST: usize = 2000;

/// The key on the first line, the value behind it.
fn lease(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (key, value) = text.split_once('\n').unwrap_or((&text, ""));
    if let Err(reason) = read_lease(key, value.as_bytes()) {
        assert!(reason.len() <= LONGEST, "{reason}");
    }
}

fn net_conf(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for parsed in [NetConf::parse(&text), NetConf::parse_assigned(&text)] {
        let Err(problems) = parsed else { continue };
        assert!(problems.iter().all(|problem| problem.to_string().len() <= LONGEST), "{problems:?}");
        assert!(!problems.is_empty(), "refused without a reason");
    }
}

/// An argument a line.
fn arguments(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let args = std::iter::once("netd").chain(text.lines().take(40)).map(OsString::from);
    match Invocation::read(args, |_| None) {
        Ok(invocation) => {
            if let Err(problems) = Config::read(&invocation.flags, TlsMaterial::default(), 1) {
                assert!(!problems.list.is_empty(), "refused without a reason");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Two claims, a line each.
fn claim(input: &[u8]) {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let mut next = || Claim::parse(lines.next().unwrap_or_default());
    let (Some(one), Some(other)) = (next(), next()) else { return };
    assert_eq!(one.conflict(&other).is_some(), other.conflict(&one).is_some(), "{one:?} and {other:?}");
    assert!(one.conflict(&one).is_some(), "a second daemon of the same flags");
    let written = serde_json::to_vec(&one).unwrap_or_default();
    assert_eq!(Claim::parse(&written), Some(one));
}

/// What the operator's own program says of this node, as its lease has it.
fn extension(input: &[u8]) {
    let said = String::from_utf8_lossy(input).trim().to_owned();
    let data = PerFamily { v4: Some(said), v6: None };
    let public_ips = PerFamily { v4: Some([10, 4, 7, 21].into()), v6: None };
    let attrs = LeaseAttrs { public_ips, backend: BackendAttrs::Extension(Box::new(data)) };
    let written = attrs.render();
    assert_eq!(LeaseAttrs::parse(written.as_bytes(), [IpFamily::V4].into_iter()), Ok(attrs), "{written}");
}

/// A change on the first line, the text behind it.
fn edit(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (change, conf) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(change) = Change::parse(change) else { return };
    if let Ok(edited) = change.apply(conf) {
        let value = serde_json::from_str::<Value>(&edited);
        assert!(value.is_ok_and(|value| value.is_object()), "{conf:?} becomes {edited:?}");
        assert_eq!(change.apply(&edited).ok(), Some(edited), "the second time nothing changes");
    }
}

fn lease_record(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(record) = text.parse::<LeaseRecord>();
    assert_eq!(record.to_string().parse(), Ok(record), "{text:?}");
}

fn netstat(input: &[u8]) {
    let _ = facts::counter(&String::from_utf8_lossy(input), "TcpExt:", "IPReversePathFilter");
}

/// A prefix of annotations on the first line, a Node behind it. What a lease says of a Node can be written into it, and is there then.
fn node(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (prefix, text) = text.split_once('\n').unwrap_or((&text, ""));
    let (Ok(prefix), Ok(own)) = (prefix.parse::<AnnotationPrefix>(), serde_json::from_str::<OwnNode>(text)) else {
        return;
    };
    let families = PerFamily { v4: true, v6: true };
    match prefix.lease(&own.node, families) {
        Some(Ok(lease)) => {
            let differing = prefix.differing(&own.node, &lease.attrs);
            let patch = annotations_patch(&differing);
            assert!(patch.pointer("/metadata/annotations").is_some_and(Value::is_object), "{differing:?}");
        }
        Some(Err(reason)) => assert!(!reason.is_empty() && reason.len() <= LONGEST, "{reason}"),
        None => {}
    }
    let _ = (prefix.node_public_ips(&own.node), prefix.unusable(&own.node), own.node.created(), own.node.revision());
}

fn probe(input: &[u8]) {
    if let Some(number) = packet::asked(input) {
        assert_eq!(packet::asked(&packet::request(number, input.len())), Some(number));
        assert!(input.len() >= packet::LENGTH, "an answer is no longer than its request");
    }
    if let Some(answer) = packet::read(input) {
        assert_eq!(packet::read(&packet::render(&answer)), Some(answer));
    }
}

/// What the last probes found, as it is shown.
fn probes(input: &[u8]) {
    let kept = kept::parse(input);
    let written = serde_json::to_vec(&kept).unwrap_or_default();
    assert_eq!(kept::parse(&written), kept);
}

fn status_file(input: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<Value>(input) {
        let text = status::text(&value);
        assert!(text.len() <= 40 * (input.len() + 100), "{} bytes of {}", text.len(), input.len());
        let _ = status::outdated(value);
    }
}

fn variables(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let found = docker_opts::variables(&text);
    assert!(found.iter().all(|(name, value)| text.contains(name) && text.contains(value)), "{found:?}");
}

fn words(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for word in text.lines() {
        let _ = (go::boolean(word), go::integer(word));
        if let Ok(target) = Target::parse(word, 80) {
            assert!(Target::parse(&target.to_string(), 81).is_ok(), "{word:?} as {target}");
        }
    }
    if let Ok(policies) = Policy::parse_list(&text) {
        let written: Vec<String> = policies.iter().map(ToString::to_string).collect();
        assert_eq!(Policy::parse_list(&written.join(",")), Ok(policies));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_written_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
