//! kubeconfig: how a client finds the API server, whom it believes and who it is.
//!
//! Pure. Invariant: every text is a whole `Config` with a current context, because a component without one falls back to
//! its Pod's service account or to port 8080; values stand in quotes of JSON, which YAML reads as they are.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::pki::{Pair, Secret};

/// Who the client is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Credentials<'a> {
    /// Certificate and key in the file itself, which is for one who carries it away; a daemon never reads it again.
    Inline(&'a Pair),
    /// Certificate and key in files, which daemons read again after a renewal.
    Files(&'a Path, &'a Path),
}

/// Whom the client believes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// Certificates of authorities in the file itself.
    Inline(&'a str),
    /// A file of certificates of authorities.
    File(&'a Path),
}

/// The kubeconfig of `user` in `cluster`, whose API server is at `server`, a URL.
pub(crate) fn render(
    cluster: &str,
    server: &str,
    trust: Trust<'_>,
    user: &str,
    credentials: Credentials<'_>,
) -> Secret {
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let path = |path: &Path| quoted(&path.display().to_string());
    let authority = match trust {
        Trust::Inline(pem) => format!("certificate-authority-data: {}", data(pem)),
        Trust::File(file) => format!("certificate-authority: {}", path(file)),
    };
    let (certificate, key) = match credentials {
        Credentials::Inline(pair) => (
            format!("client-certificate-data: {}", data(&pair.certificate_pem)),
            format!("client-key-data: {}", data(pair.key_pem.expose())),
        ),
        Credentials::Files(certificate, key) => {
            (format!("client-certificate: {}", path(certificate)), format!("client-key: {}", path(key)))
        }
    };
    let (context, cluster, user) = (quoted(&format!("{user}@{cluster}")), quoted(cluster), quoted(user));
    let mut text = String::from("apiVersion: v1\nkind: Config\npreferences: {}\n");
    // Writing into a text does not fail.
    let _ = write!(
        text,
        "clusters:\n- name: {cluster}\n  cluster:\n    server: {}\n    {authority}\n\
         users:\n- name: {user}\n  user:\n    {certificate}\n    {key}\n\
         contexts:\n- name: {context}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
         current-context: {context}\n",
        quoted(server),
    );
    Secret::new(text)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::parse;

    fn pair() -> Pair {
        Pair { certificate_pem: "certificate\n".to_owned(), key_pem: Secret::new("key\n".to_owned()) }
    }

    #[test]
    fn what_an_operator_carries_away_has_everything_in_itself() {
        let text = render(
            "reference",
            "https://10.4.7.10:7443",
            Trust::Inline("ca\n"),
            "kubernetes-admin",
            Credentials::Inline(&pair()),
        );
        assert_eq!(
            text.expose(),
            r#"apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: "reference"
  cluster:
    server: "https://10.4.7.10:7443"
    certificate-authority-data: Y2EK
users:
- name: "kubernetes-admin"
  user:
    client-certificate-data: Y2VydGlmaWNhdGUK
    client-key-data: a2V5Cg==
contexts:
- name: "kubernetes-admin@reference"
  context:
    cluster: "reference"
    user: "kubernetes-admin"
current-context: "kubernetes-admin@reference"
"#
        );
        assert!(parse(text.expose()).is_ok());
    }

    #[test]
    fn a_component_reads_files_that_it_reads_again() {
        let [ca, certificate, key] =
            ["ca.crt", "scheduler.crt", "scheduler.key"].map(|name| format!("/etc/kubernetes/pki/{name}"));
        let credentials = Credentials::Files(Path::new(&certificate), Path::new(&key));
        let text =
            render("a", "https://[fd00::1]:6443", Trust::File(Path::new(&ca)), "system:kube-scheduler", credentials);
        for line in [
            r#"    certificate-authority: "/etc/kubernetes/pki/ca.crt""#,
            r#"    client-certificate: "/etc/kubernetes/pki/scheduler.crt""#,
            r#"    client-key: "/etc/kubernetes/pki/scheduler.key""#,
            r#"    server: "https://[fd00::1]:6443""#,
            r#"current-context: "system:kube-scheduler@a""#,
        ] {
            assert!(text.expose().lines().any(|one| one == line), "{line} in {}", text.expose());
        }
        assert!(!text.expose().contains("-data"));
    }
}
