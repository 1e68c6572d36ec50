//! What may stand in a folder that somebody copied to a host, and in the host's own files: parsers by the names of their corpora in `fuzz/`.
//!
//! Invariant: what is read is written so that it is read again as the same, and what is refused is refused with a short reason.

use crate::Manifest;
use crate::files::accounts::Accounts;
use crate::manifest::FileOwner;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 2] = [("manifest", manifest), ("accounts", accounts)];

/// The longest reason, in bytes: an operator reads it on a terminal.
const LONGEST: usize = 2000;

fn manifest(input: &[u8]) {
    match Manifest::parse(input) {
        Ok(manifest) => assert_eq!(Manifest::parse(manifest.text().as_bytes()), Ok(manifest)),
        Err(refusal) => assert!(refusal.to_string().len() <= LONGEST, "{refusal}"),
    }
}

fn accounts(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let accounts = Accounts::parse(&text, &text);
    if let Ok((user, group)) = accounts.numbers(&FileOwner::named("etcd")) {
        let again = FileOwner::try_from(accounts.names(user, group)).map(|owner| accounts.numbers(&owner));
        assert!(again.is_err() || again == Ok(Ok((user, group))), "{accounts:?}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
