//! What operators and other programs write for sources: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! Invariant: every input is answered, by a value that is written as it is read or by reasons of bounded length.

use crate::Problem;
use crate::etcd::{Endpoint, Prefix};
use crate::kubernetes::object::{Message, Page, Raw};

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 3] = [("endpoints", endpoints), ("prefix", prefix), ("watch", watch)];

/// The longest reason, in bytes: an operator reads it in a log.
const LONGEST: usize = 2000;

fn endpoints(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for with_tls in [false, true] {
        match Endpoint::parse_list(&text, with_tls) {
            Ok(list) => {
                let written: Vec<String> = list.iter().map(ToString::to_string).collect();
                assert_eq!(Endpoint::parse_list(&written.join(","), with_tls).as_ref(), Ok(&list), "{text:?}");
                assert!(list.iter().all(|endpoint| !endpoint.host().is_empty()), "{list:?}");
            }
            Err(problems) => refused(&problems),
        }
    }
}

fn prefix(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match Prefix::parse("--etcd-prefix", &text) {
        Ok(prefix) => {
            let key = prefix.key("config");
            assert!(key.len() <= text.len() + "/config".len() && !key.contains("//"), "{text:?} makes {key}");
        }
        Err(problem) => refused(&[problem]),
    }
}

/// A line of a watch of the Kubernetes API, and a page of a listing.
fn watch(input: &[u8]) {
    match Message::parse(input) {
        Ok(Message::Put(raw) | Message::Delete(raw)) => assert!(!raw.key.is_empty() && raw.text.starts_with('{')),
        Ok(Message::Bookmark { .. } | Message::Error { .. }) => {}
        Err(reason) => assert!(!reason.is_empty() && reason.len() <= LONGEST + input.len()),
    }
    if let Ok(page) = Page::parse(input) {
        for raw in page.items.iter().filter_map(|item| Raw::parse(item).ok()) {
            assert!(!raw.key.is_empty(), "{raw:?}");
        }
    }
}

fn refused(problems: &[Problem]) {
    assert!(!problems.is_empty(), "refused without a reason");
    assert!(problems.iter().all(|problem| problem.to_string().len() <= LONGEST), "{problems:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_written_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
