//! What other programs write where the plugin reads without being called with it: comments of rules and elements, keys in records,
//! resolv.conf. Each parser is by the name of its corpus in `fuzz/`; those of input and state files are in `tests/fuzz`.
//!
//! Invariant: every input is answered; what is read as ours is written as it was read.

use crate::plan::hostports::keys;
use crate::plan::predecessor;
use crate::plan::tag::ObservedTag;
use crate::protocol::resolver;

/// Every parser by the name of its corpus.
const TARGETS: [(&str, ::fuzz::Target); 2] = [("comments", comments), ("resolver", resolv_conf)];

fn comments(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    for line in text.lines() {
        if let Some(tag) = ObservedTag::read(line) {
            assert!(tag.is_same(&tag), "{line:?}");
        }
        if let Some((network, container)) = predecessor::read_comment(line) {
            assert!(line.contains(network) && line.contains(&container.to_string()), "{line:?}");
        }
        if let Some(key) = keys::parse(line) {
            assert_eq!(keys::parse(&keys::text(&key)), Some(key), "{line:?}");
        }
    }
}

fn resolv_conf(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let dns = resolver::parse(&text);
    assert!(dns.nameservers.iter().all(|server| text.contains(server.as_str())), "{dns:?}");
}

#[test]
fn whatever_is_found_is_answered() {
    ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &TARGETS);
}
