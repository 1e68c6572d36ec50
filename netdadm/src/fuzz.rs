//! What anybody may write into a topology or a rendered folder, put where certificates and keys are, or answer to `status`, for fuzzing: each parser by the name of its
//! corpus in `fuzz/`.
//!
//! Invariant: every input is answered: a topology by one that went through every check or by findings that stand inside the
//! text, a certificate or key by its values or by one flaw.

use crate::check::{self, Checked};
use crate::output;
use crate::pki::{Certificate, Key};
use crate::render;
use crate::status;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 4] =
    [("certificate", certificate), ("folder", folder), ("http_answer", http_answer), ("topology", read)];

/// The longest finding, in bytes: an operator reads it on a terminal.
const LONGEST: usize = 2000;

fn read(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let lines = text.lines().count().max(1);
    let Checked { topology, findings } = check::text(&text);
    match topology {
        Some(topology) => {
            assert_eq!(check::summary(&topology).lines().count(), topology.hosts.len() + 2);
            // A value that could end its line would be another setting.
            for tree in topology.hosts.iter().map(|host| render::host(&topology, host)) {
                let settings = tree.files.iter().filter(|(path, _)| path.starts_with("/etc/default"));
                let lines = settings.flat_map(|(_, file)| file.text.lines());
                assert!(lines.into_iter().all(|line| line.starts_with('#') || line.contains('=')));
            }
        }
        None => assert!(!findings.is_empty(), "nothing was read, and nobody knows why"),
    }
    for finding in findings {
        assert!((1..=lines + 1).contains(&finding.at.line) && finding.at.column > 0, "{finding}");
        assert!(finding.to_string().len() <= LONGEST, "{finding}");
    }
}

fn folder(input: &[u8]) {
    for refusal in output::refusals(input) {
        assert!(refusal.len() <= LONGEST, "{refusal}");
    }
}

fn http_answer(input: &[u8]) {
    for found in status::answered(input) {
        assert!(found.len() <= LONGEST, "{found}");
    }
}

fn certificate(input: &[u8]) {
    match Certificate::read(input) {
        Ok(certificate) => {
            assert_eq!(Certificate::decode(&certificate.der).as_ref(), Ok(&certificate));
            // Whether it has signed itself is asked of every key and signature that it may have.
            certificate.is_signed_by(&certificate);
        }
        Err(flaw) => assert!(flaw.to_string().len() <= LONGEST, "{flaw}"),
    }
    if let Ok(all) = Certificate::read_all(input) {
        assert!(!all.is_empty());
    }
    match Key::read(input) {
        Ok(key) => assert!(!key.public_der().is_empty()),
        Err(flaw) => assert!(flaw.to_string().len() <= LONGEST, "{flaw}"),
    }
    let _ = Certificate::decode(input);
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
