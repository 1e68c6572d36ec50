//! Passwords and tokens that this program's clients prove themselves with, and texts of others without them.
//!
//! Invariant: what a server says is repeated without the credential that it was given: a proxy that answers with the request's head, or a
//! server that names the token it does not accept, puts none into a log or status.

use crate::registry::{Entry, Registry};

/// Stands where a credential stood.
const HIDDEN: &str = "(hidden)";

/// Bytes of the shortest that is hidden: a shorter one stands in other words by chance, and so would show.
const SHORTEST: usize = 4;

static KEPT: Registry<String> = Registry::new();

/// Credentials that a client has; dropped with it.
pub(crate) struct Credentials(#[allow(dead_code, reason = "kept for its drop")] Entry<String>);

impl Credentials {
    /// Has texts be without these from now on.
    pub(crate) fn keep(secrets: impl IntoIterator<Item = String>) -> Self {
        let entry = KEPT.take(secrets.into_iter().filter(|secret| secret.len() >= SHORTEST));
        // One may be a part of another, of which the rest would show.
        KEPT.values().sort_by_key(|(_, secret)| std::cmp::Reverse(secret.len()));
        Self(entry)
    }
}

/// A text of somebody else without the credentials that this program has now.
pub(crate) fn hidden(text: String) -> String {
    KEPT.values().iter().fold(text, |text, (_, secret)| match text.contains(secret.as_str()) {
        true => text.replace(secret.as_str(), HIDDEN),
        false => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, ClusterError};

    fn said(text: &str) -> String {
        ClusterError::new("get", "k", "server", text, Class::Retry).message
    }

    #[test]
    fn a_credential_is_in_no_error_for_as_long_as_a_client_has_it() {
        let (one, other) = ("TOKEN-OF-CREDENTIALS", "TOKEN-OF-CREDENTIALS-AND-MORE");
        let first = Credentials::keep([one.to_owned(), "abc".to_owned()]);
        let second = Credentials::keep([other.to_owned()]);
        assert_eq!(said(&format!("no {one}, {other} nor abc")), "no (hidden), (hidden) nor abc");
        drop(first);
        assert_eq!(said(&format!("no {other}")), "no (hidden)");
        drop(second);
        assert_eq!(said(one), one);
    }
}
