//! `Access`: which API server, and as whom; what the flags say, and what of the environment counts.
//!
//! Invariant: the same rules as client-go's `BuildConfigFromFlags`: a kubeconfig, whose server the flag may replace; a server alone,
//! without credentials; neither: the service account of the Pod that this runs in.

use std::path::PathBuf;

/// Where Kubernetes mounts a Pod's service account (plugin/pkg/admission/serviceaccount).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Which API server, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The kubeconfig; its current context counts.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, before the kubeconfig's.
    pub server: Option<String>,
    /// What this program calls itself: `netd/0.1.0`.
    pub agent: String,
    /// What grants the rights that this program needs, as a 403 names it: a file of `configs/kubernetes`.
    pub grants: String,
    pub(super) service_account: PathBuf,
    pub(super) environment: Environment,
}

/// The variables that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub(super) service: Option<(String, String)>,
    pub(super) http_proxy: Option<String>,
    pub(super) https_proxy: Option<String>,
    pub(super) no_proxy: String,
}

impl Environment {
    /// What `variable` returns; as Go does, capitals count before small letters, and an empty text is none.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name: &str| variable(name).filter(|text| !text.is_empty());
        let either = |name: &str| given(name).or_else(|| given(&name.to_lowercase()));
        Self {
            service: given("KUBERNETES_SERVICE_HOST").zip(given("KUBERNETES_SERVICE_PORT")),
            http_proxy: either("HTTP_PROXY"),
            https_proxy: either("HTTPS_PROXY"),
            no_proxy: either("NO_PROXY").unwrap_or_default(),
        }
    }
}

impl Access {
    /// What the flags say, with this process's environment; an empty text is the same as none.
    #[must_use]
    pub fn new(kubeconfig: Option<&str>, server: Option<&str>, agent: &str, grants: &str) -> Self {
        let given = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
        Self {
            kubeconfig: given(kubeconfig).map(Into::into),
            server: given(server),
            agent: agent.to_owned(),
            grants: grants.to_owned(),
            service_account: SERVICE_ACCOUNT.into(),
            environment: Environment::of(|name| std::env::var(name).ok()),
        }
    }

    /// True where neither a kubeconfig nor a server is named: this runs in a Pod, or nowhere.
    #[must_use]
    pub const fn is_in_cluster(&self) -> bool {
        self.kubeconfig.is_none() && self.server.is_none()
    }

    /// True in a Pod, whose environment names the API server.
    #[must_use]
    pub const fn is_in_pod(&self) -> bool {
        self.environment.service.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_environment_capitals_count_first_and_empty_texts_never() {
        let read = Environment::of(|name| {
            let value = match name {
                "HTTPS_PROXY" => "http://a:1",
                "https_proxy" => "http://b:1",
                "http_proxy" => "http://c:1",
                "no_proxy" => ".internal",
                "NO_PROXY" | "KUBERNETES_SERVICE_PORT" => "",
                "KUBERNETES_SERVICE_HOST" => "192.168.0.1",
                _ => return None,
            };
            Some(value.to_owned())
        });
        assert_eq!(read.https_proxy.as_deref(), Some("http://a:1"));
        assert_eq!(read.http_proxy.as_deref(), Some("http://c:1"));
        assert_eq!((read.no_proxy.as_str(), read.service), (".internal", None));
    }
}
