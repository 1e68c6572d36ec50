//! What an answer of etcd or of the transport means: try another member, try later, or give up.
//!
//! Invariant: a fault counts as the member's (`Reason::Unreachable`) only when another member may answer
//! differently; a refusal by the cluster is never sent around.

use std::io;

use etcd_client::Error;

use super::endpoints::Endpoint;
use crate::error::{Class, ClusterError, Reason};

/// gRPC status codes (grpc/doc/statuscodes.md); the client crate does not re-export them.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const ABORTED: i32 = 10;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
}

/// Turns a client error into ours.
pub(super) fn fault(op: &'static str, object: &str, endpoint: &str, error: &Error) -> ClusterError {
    let reason = reason(error);
    let class = match (reason, error) {
        (Reason::Unreachable | Reason::Compacted, _) => Class::Retry,
        (_, Error::GRpcStatus(status)) if is_passing(i32::from(status.code())) => Class::Retry,
        _ => Class::Refuse,
    };
    ClusterError { reason, ..ClusterError::new(op, object, endpoint, message(error), class) }
}

/// The cluster as a whole is over a limit (etcd's `too many requests`, `database space exceeded`).
fn is_passing(grpc: i32) -> bool {
    matches!(grpc, code::RESOURCE_EXHAUSTED | code::ABORTED)
}

fn reason(error: &Error) -> Reason {
    match error {
        Error::GRpcStatus(status) => status_reason(i32::from(status.code()), status.message()),
        // etcd answers a keep-alive of an unknown lease with TTL 0, which the client crate reports this way.
        Error::LeaseKeepAliveError(_) => Reason::LeaseGone,
        Error::TransportError(_) | Error::IoError(_) | Error::WatchError(_) | Error::EndpointError(_) => {
            Reason::Unreachable
        }
        _ => Reason::Other,
    }
}

/// Codes as etcd's `rpctypes/error.go` assigns them.
fn status_reason(grpc: i32, message: &str) -> Reason {
    match grpc {
        code::CANCELLED | code::UNKNOWN | code::DEADLINE_EXCEEDED | code::INTERNAL | code::UNAVAILABLE => {
            Reason::Unreachable
        }
        // `compacted` and `future revision`: either way the revision we hold is of no use.
        code::OUT_OF_RANGE if message.starts_with("etcdserver") => Reason::Compacted,
        // The transport's own refusal to decode a long message has the same code.
        code::OUT_OF_RANGE => Reason::TooLarge,
        code::NOT_FOUND if message.contains("lease") => Reason::LeaseGone,
        // A member that does not vote yet serves no reads; the others do.
        code::FAILED_PRECONDITION if message.contains("not supported for learner") => Reason::Unreachable,
        code::FAILED_PRECONDITION if message.contains("lease already exists") => Reason::LeaseExists,
        _ => Reason::Other,
    }
}

/// The store has no users (any more), so that nobody can ask it for a token (etcd's `ErrAuthNotEnabled`).
pub(super) fn is_without_users(error: &Error) -> bool {
    says(error, "authentication is not enabled")
}

/// Another token is needed than the connection has, or none: users were enabled or disabled, or one of them or a role was changed,
/// since it was asked for (etcd's `ErrUserEmpty`, `ErrAuthNotEnabled`, `ErrAuthOldRevision`).
pub(super) fn wants_another_token(error: &Error) -> bool {
    is_without_users(error) || says(error, "user name is empty") || says(error, "revision of auth store is old")
}

fn says(error: &Error, words: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().strip_prefix("etcdserver: ") == Some(words))
}

/// What is to be done about a refusal of etcd's authentication (`rpctypes/error.go`), which says what is wrong only.
fn advice(words: &str) -> &'static str {
    match words.strip_prefix("etcdserver: ") {
        Some("permission denied") => {
            "; give a role of this user the right for these keys: `etcdctl role grant-permission ROLE readwrite PREFIX/ --prefix`"
        }
        Some("user name is empty") => "; the store has users: give etcd-username and etcd-password",
        Some("authentication failed, invalid user ID or password") => {
            "; give etcd-username and etcd-password as the store has them: `etcdctl user passwd` sets a password"
        }
        _ => "",
    }
}

/// What to ask about a member that has never answered and ends the connection: TLS may be on at one side alone, which neither side's words say.
pub(super) fn other_scheme(endpoint: &Endpoint, error: &Error) -> &'static str {
    let first: Option<&dyn std::error::Error> = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(transport) => Some(transport),
        _ => None,
    };
    let is_ended = std::iter::successors(first, |error| error.source()).any(ends_the_connection);
    match (is_ended, endpoint.is_tls()) {
        (false, _) => "",
        (_, true) => "; does the member speak TLS? without it its URL begins with http://",
        (_, false) => "; does the member speak TLS? with it its URL begins with https://",
    }
}

/// The connection was there and ended, or what came over it is no TLS.
fn ends_the_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<io::Error>() else {
        // hyper's words for a connection that ended before its first answer.
        return error.to_string() == "connection closed";
    };
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let ends = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    ends || matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

/// The peer's words, followed by the chain of causes: `tcp connect error` alone says too little.
fn message(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => {
            let words = status.message();
            let text = if words.is_empty() { status.code().to_string() } else { format!("{words}{}", advice(words)) };
            (text, std::error::Error::source(status))
        }
        Error::TransportError(transport) => (transport.to_string(), std::error::Error::source(transport)),
        other => (other.to_string(), None),
    };
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_members_own_trouble_is_taken_to_another_member() {
        let cases = [
            (14, "etcdserver: no leader", Reason::Unreachable),
            (2, "h2 protocol error: broken pipe", Reason::Unreachable),
            (1, "Timeout expired", Reason::Unreachable),
            (4, "etcdserver: request timed out", Reason::Unreachable),
            (11, "etcdserver: mvcc: required revision has been compacted", Reason::Compacted),
            (11, "Error, decoded message length too large: found 9 bytes", Reason::TooLarge),
            (5, "etcdserver: requested lease not found", Reason::LeaseGone),
            (5, "etcdserver: member not found", Reason::Other),
            (9, "etcdserver: rpc not supported for learner", Reason::Unreachable),
            (9, "etcdserver: lease already exists", Reason::LeaseExists),
            (7, "etcdserver: permission denied", Reason::Other),
            (8, "etcdserver: mvcc: database space exceeded", Reason::Other),
        ];
        for (grpc, message, expected) in cases {
            assert_eq!(status_reason(grpc, message), expected, "{message}");
        }
    }

    #[test]
    fn only_what_ends_a_connection_asks_about_tls() {
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        for kind in [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe] {
            assert!(ends_the_connection(&io(kind)), "{kind}");
        }
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable] {
            assert!(!ends_the_connection(&io(kind)), "{kind}");
        }
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        assert!(ends_the_connection(&tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))));
        assert!(!ends_the_connection(&tls(rustls::Error::DecryptError)));
        assert!(ends_the_connection(&*Box::<dyn std::error::Error>::from("connection closed")));
        assert!(!ends_the_connection(&*Box::<dyn std::error::Error>::from("transport error")));
    }

    #[test]
    fn an_unknown_lease_is_a_refusal_and_a_broken_stream_is_not() {
        let gone = fault("keep alive", "lease 7", "http://a:1", &Error::LeaseKeepAliveError("lease not found".into()));
        assert_eq!((gone.reason, gone.class), (Reason::LeaseGone, Class::Refuse));
        let broken = fault("watch", "/x/", "http://a:1", &Error::WatchError("closed".into()));
        assert_eq!((broken.reason, broken.class), (Reason::Unreachable, Class::Retry));
        assert!(broken.to_string().contains("closed"), "{broken}");
    }
}
