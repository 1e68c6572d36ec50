//! TLS towards etcd: a CA alone, or a CA with a client certificate and its key.
//!
//! Invariants: material is read and checked when the client is built, not at the first request; a private key
//! is never formatted. `rustls` runs on `ring` in the whole process, installed here once, so that a second
//! provider brought in by another dependency cannot make the choice ambiguous at run time.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::Problem;

const CA: &str = "etcd-cafile";
const CERT: &str = "etcd-certfile";
const KEY: &str = "etcd-keyfile";
const ACCEPTED_CERT: &str = "a readable PEM file with at least one CERTIFICATE";
const ACCEPTED_KEY: &str = "a readable PEM file with one PRIVATE KEY";

/// The three files as the operator names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Files {
    /// An empty path counts as absent, as with flannel's flags.
    pub(super) fn new(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Self {
        let given = |path: Option<&Path>| path.filter(|path| !path.as_os_str().is_empty()).map(Path::to_path_buf);
        Self { ca: given(ca), cert: given(cert), key: given(key) }
    }

    pub(super) fn any(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// Reads and checks the files for members spoken to over TLS.
    ///
    /// # Errors
    /// Every file that is missing or malformed, each by its field.
    pub(super) fn load(&self) -> Result<TlsOptions, Vec<Problem>> {
        install_provider();
        let mut errors = Vec::new();
        let Some(ca) = &self.ca else {
            errors.push(refuse(CA, "missing, but the members are https".into(), ACCEPTED_CERT));
            return Err(errors);
        };
        let ca = read_certificates(CA, ca, &mut errors);
        let identity = self.identity(&mut errors);
        match (ca, errors.is_empty()) {
            (Some(ca), true) => {
                let options = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
                Ok(match identity {
                    Some(identity) => options.identity(identity),
                    None => options,
                })
            }
            _ => Err(errors),
        }
    }

    fn identity(&self, errors: &mut Vec<Problem>) -> Option<Identity> {
        match (&self.cert, &self.key) {
            (None, None) => None,
            (Some(_), None) => {
                errors.push(refuse(KEY, format!("missing, but {CERT} is given"), ACCEPTED_KEY));
                None
            }
            (None, Some(_)) => {
                errors.push(refuse(CERT, format!("missing, but {KEY} is given"), ACCEPTED_CERT));
                None
            }
            (Some(cert), Some(key)) => {
                let cert = read_certificates(CERT, cert, errors);
                let key = read_key(key, errors);
                let (cert, key) = (cert?, key?);
                if let Err(message) = belong_together(&cert, &key) {
                    errors.push(refuse(KEY, message, "the private key of etcd-certfile"));
                }
                Some(Identity::from_pem(cert, key))
            }
        }
    }
}

fn read_certificates(field: &'static str, path: &Path, errors: &mut Vec<Problem>) -> Option<Vec<u8>> {
    let pem = read(field, path, ACCEPTED_CERT, errors)?;
    let problem = match certificates(&pem) {
        Ok(found) if found.is_empty() => "holds no certificate".to_owned(),
        Ok(found) => match found.into_iter().try_for_each(|found| RootCertStore::empty().add(found)) {
            Ok(()) => return Some(pem),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    errors.push(refuse(field, format!("{}: {problem}", path.display()), ACCEPTED_CERT));
    None
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

/// Else every handshake would fail later, and pass for a fault of the member.
fn belong_together(cert: &[u8], key: &[u8]) -> Result<(), String> {
    let chain = certificates(cert).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "holds no private key".to_owned())?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(|_| ())
        .map_err(|error| format!("does not belong to {CERT}: {error}"))
}

fn read_key(path: &Path, errors: &mut Vec<Problem>) -> Option<Vec<u8>> {
    let pem = read(KEY, path, ACCEPTED_KEY, errors)?;
    if PrivateKeyDer::from_pem_slice(&pem).is_ok() {
        return Some(pem);
    }
    // The parser's own words are not repeated: they may quote the file.
    errors.push(refuse(KEY, format!("{} holds no private key", path.display()), ACCEPTED_KEY));
    None
}

fn read(field: &'static str, path: &Path, accepted: &'static str, errors: &mut Vec<Problem>) -> Option<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| errors.push(refuse(field, format!("{}: {error}", path.display()), accepted)))
        .ok()
}

fn refuse(field: &'static str, message: String, accepted: &'static str) -> Problem {
    Problem::new(field, message, accepted)
}

/// A provider that is installed already stays: the program chose it.
fn install_provider() {
    let _already_chosen = ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pem {
        dir: tempfile::TempDir,
    }

    impl Pem {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let certified = rcgen::generate_simple_self_signed(vec!["etcd".to_owned()]).unwrap();
            std::fs::write(dir.path().join("cert"), certified.cert.pem()).unwrap();
            std::fs::write(dir.path().join("key"), certified.signing_key.serialize_pem()).unwrap();
            let other = rcgen::KeyPair::generate().unwrap();
            std::fs::write(dir.path().join("other-key"), other.serialize_pem()).unwrap();
            std::fs::write(dir.path().join("junk"), "SECRET-WORD").unwrap();
            let bent = "-----BEGIN CERTIFICATE-----\nU0VDUkVULVdPUkQ=\n-----END CERTIFICATE-----\n";
            std::fs::write(dir.path().join("bent"), bent).unwrap();
            Self { dir }
        }

        fn fields(&self, ca: Option<&str>, cert: Option<&str>, key: Option<&str>) -> Vec<String> {
            let path = |name: &str| self.dir.path().join(name);
            let files = Files { ca: ca.map(path), cert: cert.map(path), key: key.map(path) };
            match files.load() {
                Ok(_) => Vec::new(),
                Err(errors) => {
                    assert!(!format!("{errors:?}").contains("SECRET-WORD"));
                    errors.iter().map(|error| error.field.to_string()).collect()
                }
            }
        }
    }

    #[test]
    fn a_ca_alone_or_with_certificate_and_key_is_accepted() {
        let pem = Pem::new();
        assert!(pem.fields(Some("cert"), None, None).is_empty());
        assert!(pem.fields(Some("cert"), Some("cert"), Some("key")).is_empty());
    }

    #[test]
    fn every_missing_or_malformed_file_is_named_by_its_field() {
        let pem = Pem::new();
        assert_eq!(pem.fields(None, None, None), ["etcd-cafile"]);
        assert_eq!(pem.fields(Some("cert"), Some("cert"), None), ["etcd-keyfile"]);
        assert_eq!(pem.fields(Some("cert"), None, Some("key")), ["etcd-certfile"]);
        assert_eq!(
            pem.fields(Some("absent"), Some("junk"), Some("junk")),
            ["etcd-cafile", "etcd-certfile", "etcd-keyfile"]
        );
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_before_the_first_handshake() {
        let pem = Pem::new();
        assert_eq!(pem.fields(Some("cert"), Some("cert"), Some("other-key")), ["etcd-keyfile"]);
        assert_eq!(pem.fields(Some("bent"), None, None), ["etcd-cafile"]);
    }

    #[test]
    fn an_empty_path_is_an_absent_one() {
        assert!(!Files::new(Some(Path::new("")), Some(Path::new("")), None).any());
    }
}
