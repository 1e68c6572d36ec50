//! A kubeconfig: where the API server is, how it is known, and who asks.
//!
//! Invariant: it is whole in itself (authority and certificates as data), so it works in any machine.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::authority::Issued;

/// A kubeconfig; written with `to_string`.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    server: String,
    authority: String,
    /// File with the authority, in place of the text.
    authority_file: Option<String>,
    user: Value,
}

impl Kubeconfig {
    pub(crate) fn new(server: &str, authority: &str) -> Self {
        Self { server: server.to_owned(), authority: STANDARD.encode(authority), authority_file: None, user: json!({}) }
    }

    /// Another place of the server, as `https://ADDRESS:PORT`.
    #[must_use]
    pub fn server(mut self, url: &str) -> Self {
        self.server = url.to_owned();
        self
    }

    /// Knows the server by the authority in this file of the machine that reads the kubeconfig.
    #[must_use]
    pub fn authority_file(mut self, path: &str) -> Self {
        self.authority_file = Some(path.to_owned());
        self
    }

    /// Asks with this token.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.user = json!({"token": token});
        self
    }

    /// Asks with the token in this file of the machine that reads the kubeconfig.
    #[must_use]
    pub fn token_file(mut self, path: &str) -> Self {
        self.user = json!({"tokenFile": path});
        self
    }

    /// Asks with the certificate and the key in these files of the machine that reads the kubeconfig.
    #[must_use]
    pub fn certificate_files(mut self, certificate: &str, key: &str) -> Self {
        self.user = json!({"client-certificate": certificate, "client-key": key});
        self
    }

    /// Asks as nobody.
    #[must_use]
    pub fn nobody(mut self) -> Self {
        self.user = json!({});
        self
    }

    pub(crate) fn certificate(mut self, issued: &Issued) -> Self {
        self.user = json!({"client-certificate-data": STANDARD.encode(&issued.certificate),
            "client-key-data": STANDARD.encode(&issued.key)});
        self
    }
}

impl fmt::Display for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = match &self.authority_file {
            Some(path) => json!({"server": self.server, "certificate-authority": path}),
            None => json!({"server": self.server, "certificate-authority-data": self.authority}),
        };
        let whole = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": self.user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        });
        write!(f, "{whole:#}")
    }
}
