//! What may stand in a folder that somebody copied to a host: the parser of its manifest, by the name of its corpus in `fuzz/`.
//!
//! Invariant: what is read is written so that it is read again as the same, and what is refused is refused with a short reason.

use crate::Manifest;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 1] = [("manifest", manifest)];

/// The longest reason, in bytes: an operator reads it on a terminal.
const LONGEST: usize = 2000;

fn manifest(input: &[u8]) {
    match Manifest::parse(input) {
        Ok(manifest) => assert_eq!(Manifest::parse(manifest.text().as_bytes()), Ok(manifest)),
        Err(refusal) => assert!(refusal.to_string().len() <= LONGEST, "{refusal}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
