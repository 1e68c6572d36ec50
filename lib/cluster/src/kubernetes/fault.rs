//! Faults of the API server and of the way to it, as [`ClusterError`]s.
//!
//! Invariants: a refusal for a missing right names verb and resource as RBAC does, and what grants them; what the server said is
//! repeated as it is, shortened; no text holds a credential.

use std::error::Error;
use std::time::Duration;

use hyper::http::StatusCode;
use hyper::http::header::RETRY_AFTER;
use hyper::http::response::Parts;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use crate::credentials::hidden;
use crate::error::Reason;
use crate::problem::elided;
use crate::{Class, ClusterError};

/// The longest time that a server's own request to wait is followed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is asked for, for the texts of its faults.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    /// RBAC's verb.
    pub(super) verb: &'static str,
    /// RBAC's resource, or the path of one object.
    pub(super) object: &'a str,
    pub(super) server: &'a str,
    /// What grants the right.
    pub(super) grants: &'a str,
}

/// A fault, and how long the server asks to be left alone.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) error: ClusterError,
    pub(super) wait: Option<Duration>,
}

impl From<ClusterError> for Fault {
    fn from(error: ClusterError) -> Self {
        Self { error, wait: None }
    }
}

impl Ask<'_> {
    /// Trouble on the way to the server or with its answer.
    pub(super) fn broken(&self, message: impl Into<String>) -> ClusterError {
        ClusterError::new(self.verb, self.object, self.server, message, Class::Retry)
    }

    /// Nothing came within this time.
    pub(super) fn late(&self, limit: Duration) -> ClusterError {
        self.broken(format!("no answer within {limit:?}"))
    }

    /// An answer that is no success, with its body.
    pub(super) fn refused(&self, head: &Parts, body: &[u8]) -> Fault {
        let status: Option<Status> = serde_json::from_slice(body).ok();
        let details = status.as_ref().and_then(|status| status.details.as_ref());
        let seconds =
            details.and_then(|details| details.retry_after_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        let header = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let wait = header
            .or(seconds.filter(|seconds| *seconds > 0))
            .map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
        let words = status.and_then(|status| status.message).filter(|text| !text.is_empty());
        let words = words.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        Fault { error: self.error_of(head.status.as_u16(), &words), wait }
    }

    /// What the server says with this status code.
    pub(super) fn error_of(&self, code: u16, words: &str) -> ClusterError {
        // Hidden first: what is cut out of a long text may end within a credential.
        let words = elided(hidden(words.to_owned()));
        let phrase = StatusCode::from_u16(code).ok().and_then(|code| code.canonical_reason()).unwrap_or_default();
        let said = if words.is_empty() { format!("{code} {phrase}") } else { format!("{code} {phrase}: {words}") };
        let message = match code {
            403 => format!(
                "{said}; this needs the verb `{}` for `{}`: apply {}, which grants it, to the account that this runs as",
                self.verb,
                resource(self.object),
                self.grants
            ),
            401 => format!(
                "{said}; the server does not accept this token or client certificate: it has expired, or is of another cluster"
            ),
            _ => said,
        };
        let is_temporary = code >= 500 || matches!(code, 408 | 409 | 410 | 429);
        let class = if is_temporary { Class::Retry } else { Class::Refuse };
        let mut error = ClusterError::new(self.verb, self.object, self.server, message, class);
        error.reason = if code == 410 { Reason::Compacted } else { Reason::Status(code) };
        error
    }
}

/// The resource as RBAC names it, of one or of the path of an object: `/api/v1/nodes/n1/status` is `nodes/status`.
fn resource(object: &str) -> String {
    let path = object.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix('/') else { return object.to_owned() };
    let mut parts = path.split('/');
    let group = match parts.next() {
        Some("api") => "",
        Some("apis") => parts.next().unwrap_or_default(),
        // No resource, as `/version`: RBAC has it as it is.
        _ => return format!("/{path}"),
    };
    let mut rest: Vec<_> = parts.skip(1).collect();
    if let ["namespaces", _, ..] = *rest
        && rest.len() > 2
    {
        rest.drain(..2);
    }
    let [plural, subresource] = [0, 2].map(|at| rest.get(at).copied().unwrap_or_default());
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    if subresource.is_empty() { format!("{plural}{group}") } else { format!("{plural}/{subresource}{group}") }
}

/// An error with all its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some name their cause themselves.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use hyper::http::Response;

    use super::*;

    const ASK: Ask<'_> = Ask {
        verb: "list",
        object: "services",
        server: "https://10.0.0.1:6443",
        grants: "configs/kubernetes/ipvs-proxy/rbac.yaml",
    };

    fn refused(code: u16, header: Option<&str>, body: &str) -> Fault {
        let mut response = Response::builder().status(code);
        if let Some(seconds) = header {
            response = response.header("retry-after", seconds);
        }
        ASK.refused(&response.body(()).unwrap().into_parts().0, body.as_bytes())
    }

    #[test]
    fn a_missing_right_names_verb_resource_and_what_grants_it() {
        let status = r#"{"kind":"Status","code":403,"reason":"Forbidden","message":"services is forbidden: User \"x\" cannot list"}"#;
        let error = refused(403, None, status).error;
        assert_eq!(
            error.to_string(),
            "cannot list services at https://10.0.0.1:6443: 403 Forbidden: services is forbidden: User \"x\" cannot list; this needs \
             the verb `list` for `services`: apply configs/kubernetes/ipvs-proxy/rbac.yaml, which grants it, to the account that this \
             runs as (refused until that is changed)"
        );
        assert_eq!(error.status(), Some(403));
    }

    #[test]
    fn a_path_is_the_resource_that_rbac_has_for_it() {
        for (object, expected) in [
            ("services", "services"),
            ("endpointslices.discovery.k8s.io", "endpointslices.discovery.k8s.io"),
            ("/api/v1/nodes/n1", "nodes"),
            ("/api/v1/nodes/n1/status", "nodes/status"),
            ("/api/v1/namespaces/default/events", "events"),
            ("/api/v1/namespaces/kube-system", "namespaces"),
            ("/api/v1/namespaces/shop/pods/web-1", "pods"),
            ("/api/v1/namespaces/shop/services?fieldSelector=metadata.name%3Dweb", "services"),
            ("/apis/apps/v1/namespaces/shop/deployments/web/scale", "deployments/scale.apps"),
            ("/version", "/version"),
        ] {
            assert_eq!(resource(object), expected, "{object}");
        }
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it_within_limits() {
        let wait = |header: Option<&str>, body: &str| refused(429, header, body).wait;
        assert_eq!(wait(Some("7"), ""), Some(Duration::from_secs(7)));
        assert_eq!(wait(Some("3600"), ""), Some(LONGEST_WAIT));
        assert_eq!(wait(None, r#"{"details":{"retryAfterSeconds":2}}"#), Some(Duration::from_secs(2)));
        assert_eq!(wait(None, "Too many requests"), None);
        assert_eq!(refused(429, None, "Too many requests, please try again later.").error.class, Class::Retry);
    }

    #[test]
    fn a_body_that_is_no_status_is_repeated() {
        let error = refused(502, None, "bad gateway\n").error;
        assert_eq!((error.message.as_str(), error.class), ("502 Bad Gateway: bad gateway", Class::Retry));
    }
}
