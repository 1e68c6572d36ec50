//! `Material`: a client's configuration together with everything that was read for it.
//!
//! Invariants: two of them are equal when the same was read, so a rotation shows by comparing; what was read is never formatted.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::http::Uri;
use kube::Config;
use kube::config::AuthInfo;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::ExposeSecret as _;

use super::access::{Access, Environment};
use super::{kubeconfig, proxy};
use crate::certificates::InUse;
use crate::credentials::Credentials;
use crate::{Class, ClusterError};

/// See the module's text.
#[derive(Clone)]
pub(super) struct Material {
    pub(super) config: Config,
    read: Files,
}

/// The files that were read, in turn.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Files(Vec<(PathBuf, Vec<u8>)>);

impl Files {
    /// Reads a file and keeps what it holds.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn load(&mut self, path: &Path) -> Result<Vec<u8>, String> {
        let content = bounded::read(path, bounded::SETTINGS).map_err(|error| format!("{}: {error}", path.display()))?;
        self.0.push((path.to_owned(), content.clone()));
        Ok(content)
    }

    /// As [`Files::load`], of a text.
    ///
    /// # Errors
    /// What the system says, or that it is no text.
    pub(super) fn text(&mut self, path: &Path) -> Result<String, String> {
        String::from_utf8(self.load(path)?).map_err(|_| format!("{}: not UTF-8", path.display()))
    }
}

impl Material {
    /// True when the same was read.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.read == other.read
    }

    /// Has its certificates count as used.
    pub(super) fn in_use(&self) -> InUse {
        let authorities = self.config.root_cert.clone().unwrap_or_default();
        let own = self.config.auth_info.client_certificate_data.as_deref();
        let own = own.and_then(|data| certificates(&decoded("client-certificate-data", data).ok()?).ok());
        InUse::of_der("kubernetes", [("ca", authorities), ("client", own.unwrap_or_default())])
    }

    /// Keeps what the server knows this client by out of every text.
    pub(super) fn credentials(&self) -> Credentials {
        let AuthInfo { token, username, password, .. } = &self.config.auth_info;
        let [token, password] = [token, password].map(|secret| secret.as_ref().map(|of| of.expose_secret().to_owned()));
        // RFC 7617: user and password are sent as one word.
        let basic =
            username.as_ref().zip(password.as_ref()).map(|(name, word)| STANDARD.encode(format!("{name}:{word}")));
        Credentials::keep([token, password, basic].into_iter().flatten())
    }

    /// The server's URL, without credentials.
    pub(super) fn server(&self) -> String {
        let uri = &self.config.cluster_url;
        let path = uri.path().trim_end_matches('/');
        format!("{}://{}{path}", uri.scheme_str().unwrap_or("https"), uri.authority().map_or("", |of| of.as_str()))
    }

    /// Reads everything that leads to the API server.
    ///
    /// # Errors
    /// What is wrong with it, and the accepted form.
    pub(super) fn of(access: &Access) -> Result<Self, ClusterError> {
        let (object, config) = if let Some(path) = &access.kubeconfig {
            (format!("the kubeconfig {}", path.display()), kubeconfig::material(access, path))
        } else if let Some(server) = &access.server {
            (format!("the API server's URL {server}"), of_server(server, &access.environment))
        } else {
            ("the service account of this Pod".to_owned(), of_pod(access))
        };
        let place = access.server.clone().unwrap_or_else(|| "the API server".to_owned());
        config.map_err(|message| ClusterError::new("use", object, place, message, Class::Refuse))
    }

    pub(super) fn new(config: Config, read: Files) -> Self {
        Self { config, read }
    }
}

/// A server without credentials.
fn of_server(server: &str, environment: &Environment) -> Result<Material, String> {
    let mut config = Config::new(url(server, false)?);
    config.proxy_url = proxy::for_server(&config.cluster_url, None, environment)?;
    Ok(Material::new(config, Files::default()))
}

/// The service account of the Pod that this runs in.
fn of_pod(access: &Access) -> Result<Material, String> {
    let Some((host, port)) = &access.environment.service else {
        return Err(
            "this runs in no Pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; name a kubeconfig"
                .to_owned(),
        );
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let mut read = Files::default();
    let mut config = Config::new(url(&format!("https://{host}:{port}"), true)?);
    let path = access.service_account.join("token");
    let token = token(&read.text(&path)?).map_err(|error| format!("{}: {error}", path.display()))?;
    config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
    let path = access.service_account.join("ca.crt");
    config.root_cert = Some(authorities(&read.load(&path)?).map_err(|error| format!("{}: {error}", path.display()))?);
    config.proxy_url = proxy::for_server(&config.cluster_url, None, &access.environment)?;
    Ok(Material::new(config, read))
}

/// The URL of an API server.
pub(super) fn url(text: &str, is_tls: bool) -> Result<Uri, String> {
    let accepted = "accepted: https://HOST:PORT, with a path behind it or without";
    let scheme = if is_tls { "https" } else { "http" };
    // client-go takes a host for the URL of a server.
    let whole = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
    let uri: Uri = whole.parse().map_err(|error| format!("server: {text:?}: {error}; {accepted}"))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(format!("server: {text:?}; {accepted}")),
    }
}

/// The certificates of a PEM text, each in DER.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).map(|found| found.map(|der| der.to_vec())).collect();
    match found {
        Ok(found) if found.is_empty() => Err("holds no certificate".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The certificates of a bundle that servers may be signed by. As in client-go, one that cannot be used is left out, as long as there is
/// another one.
pub(super) fn authorities(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect();
    if all.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    let is_usable = |der: &CertificateDer<'_>| RootCertStore::empty().add(der.clone()).is_ok();
    let usable: Vec<_> = all.into_iter().flatten().filter(is_usable).map(|der| der.to_vec()).collect();
    if usable.is_empty() { Err("holds no usable certificate".to_owned()) } else { Ok(usable) }
}

/// What a file with a token holds.
pub(super) fn token(text: &str) -> Result<String, String> {
    // It may be empty while it is being replaced.
    Some(text.trim().to_owned()).filter(|token| !token.is_empty()).ok_or_else(|| "holds no token".to_owned())
}

/// Text as base64, as kubeconfigs hold data.
pub(super) fn encoded(data: &[u8]) -> String {
    STANDARD.encode(data)
}

/// What base64 text holds.
pub(super) fn decoded(field: &str, text: &str) -> Result<Vec<u8>, String> {
    // Line ends in it are no part of it.
    let text: String = text.split_whitespace().collect();
    STANDARD.decode(text).map_err(|error| format!("{field}: not base64: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(dir: &Path) -> Access {
        let environment =
            Environment { service: Some(("fd00::1".to_owned(), "443".to_owned())), ..Environment::default() };
        Access { service_account: dir.to_owned(), environment, ..Access::new(None, None, "test/1", "rbac.yaml") }
    }

    #[test]
    fn a_pods_service_account_is_read_again_whole_when_it_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let text = |access: &Access| Material::of(access).err().map(|error| error.to_string()).unwrap();
        assert!(text(&pod(dir.path())).contains("token: No such file"));
        std::fs::write(dir.path().join("token"), "SECRET-1\n").unwrap();
        std::fs::write(dir.path().join("ca.crt"), "junk").unwrap();
        assert!(text(&pod(dir.path())).contains("holds no certificate"));
        let ca = rcgen::generate_simple_self_signed(vec!["api".to_owned()]).unwrap();
        std::fs::write(dir.path().join("ca.crt"), ca.cert.pem()).unwrap();
        let first = Material::of(&pod(dir.path())).ok().unwrap();
        assert_eq!(first.server(), "https://[fd00::1]:443");
        assert!(first.is_same(&Material::of(&pod(dir.path())).ok().unwrap()));
        std::fs::write(dir.path().join("token"), "SECRET-2\n").unwrap();
        assert!(!first.is_same(&Material::of(&pod(dir.path())).ok().unwrap()));
    }

    #[test]
    fn a_list_of_servers_is_refused_as_by_client_go() {
        let access =
            |server| Access { environment: Environment::default(), ..Access::new(None, Some(server), "test/1", "") };
        for list in ["https://10.0.0.1:6443,https://10.0.0.2:6443", "10.0.0.1:6443,10.0.0.2:6443"] {
            let error = Material::of(&access(list)).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains("accepted: https://HOST:PORT")), "{error:?}");
        }
        assert!(Material::of(&access("https://10.0.0.1:6443")).is_ok());
    }

    #[test]
    fn outside_of_a_pod_a_kubeconfig_is_asked_for() {
        let access = Access { environment: Environment::default(), ..Access::new(None, None, "test/1", "rbac.yaml") };
        let error = Material::of(&access).err().unwrap();
        assert!(error.to_string().contains("this runs in no Pod"), "{error}");
    }

    #[test]
    fn a_server_alone_is_asked_without_credentials() {
        let access =
            |server: &str| Access { environment: Environment::default(), ..Access::new(None, Some(server), "a", "b") };
        let server = |text: &str| Material::of(&access(text)).map(|found| found.server());
        assert_eq!(server("127.0.0.1:8080").unwrap(), "http://127.0.0.1:8080");
        assert_eq!(server("https://api.example/clusters/c-1/").unwrap(), "https://api.example/clusters/c-1");
        assert!(server("ftp://x").unwrap_err().to_string().contains("accepted: https://HOST:PORT"));
    }
}
