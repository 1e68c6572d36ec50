//! What failed, on which object, where, and what the caller does next.
//!
//! Invariant: no error carries a secret. Messages come from the peer or the operating system, without what the peer was given to know
//! this program by; passwords and keys are never formatted.

use std::fmt;

use crate::credentials::hidden;

/// What the caller of a failed operation does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing is wrong with the request: the same call later can succeed. A write may or may not have
    /// happened, so what it wanted to change is read before it is repeated.
    Retry,
    /// The peer understood and said no (permission, malformed request, unknown lease): repeating the same
    /// call gives the same answer until somebody changes something.
    Refuse,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Retry => "will be tried again",
            Self::Refuse => "refused until that is changed",
        })
    }
}

/// Why, in the terms the code of this crate branches on; everything else is in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No answer, or an answer that says the peer cannot serve now.
    Unreachable,
    /// The asked-for revision is no longer kept by the server.
    Compacted,
    /// The answer is larger than the client accepts.
    TooLarge,
    /// The lease is unknown to the server: expired or revoked.
    LeaseGone,
    /// The server knows a lease with the chosen id already.
    LeaseExists,
    /// The API server answered with this status.
    Status(u16),
    /// The peer said no; the message has its reason.
    Other,
}

/// A failed operation of a source or of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} ({class})", self.asked_once())]
pub struct ClusterError {
    /// The verb: `get`, `list`, `watch`, `create`, `keep alive`, `read` ...
    pub op: &'static str,
    /// The key, lease, prefix or file it was about.
    pub object: String,
    /// The etcd endpoint (all that were tried, comma separated) or the watched directory.
    pub endpoint: String,
    /// What the server or the operating system said.
    pub message: String,
    /// Whether trying again can help.
    pub class: Class,
    pub(crate) reason: Reason,
}

impl ClusterError {
    pub(crate) fn new(
        op: &'static str,
        object: impl Into<String>,
        endpoint: impl Into<String>,
        message: impl Into<String>,
        class: Class,
    ) -> Self {
        let reason = match class {
            Class::Retry => Reason::Unreachable,
            Class::Refuse => Reason::Other,
        };
        let message = hidden(message.into());
        Self { op, object: object.into(), endpoint: endpoint.into(), message, class, reason }
    }

    /// The HTTP status that the API server answered with, where it answered with one that is no success: 403 for a right that is missing,
    /// 404 for an object or a kind that does not exist, 409 for a conflict.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self.reason {
            Reason::Status(code) => Some(code),
            Reason::Compacted => Some(410),
            _ => None,
        }
    }

    /// The text for somebody who asks once: nothing is tried again.
    #[must_use]
    pub fn asked_once(&self) -> String {
        format!("cannot {} {} at {}: {}", self.op, self.object, self.endpoint, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_object_place_and_advice() {
        let error = ClusterError::new(
            "get",
            "/coreos.com/network/config",
            "http://10.4.7.12:2379",
            "etcdserver: no leader",
            Class::Retry,
        );
        assert_eq!(
            error.to_string(),
            "cannot get /coreos.com/network/config at http://10.4.7.12:2379: etcdserver: no leader \
             (will be tried again)"
        );
        assert_eq!(
            error.asked_once(),
            "cannot get /coreos.com/network/config at http://10.4.7.12:2379: etcdserver: no leader"
        );
    }
}
