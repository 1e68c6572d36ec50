//! What anybody may write into the store: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! Invariant: every input is answered, by a value or by reasons of bounded length.

use crate::format::lease::read_lease;
use crate::format::net_conf::NetConf;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 2] = [("lease", lease), ("net_conf", net_conf)];

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
    if let Err(problems) = NetConf::parse(&String::from_utf8_lossy(input)) {
        assert!(problems.iter().all(|problem| problem.to_string().len() <= LONGEST), "{problems:?}");
        assert!(!problems.is_empty(), "refused without a reason");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_written_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
