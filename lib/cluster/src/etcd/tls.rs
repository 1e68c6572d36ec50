//! TLS towards etcd: a CA or the system's roots, with or without a client certificate and its key.
//!
//! Invariants: what is read is checked when the client is built, not at the first request; a private key is never
//! formatted. Files are read in [`TlsFiles::read`] and nowhere else. `rustls` runs on `ring` in the whole process,
//! installed here once, so that a second provider brought in by another dependency cannot make the choice ambiguous
//! at run time.

use std::fmt;
use std::path::{Path, PathBuf};

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificates::{InUse, belong_together};
use crate::{Problem, provider};

const CA: &str = "etcd-cafile";
const CERT: &str = "etcd-certfile";
const KEY: &str = "etcd-keyfile";
const ACCEPTED_CERT: &str = "a readable PEM file with at least one CERTIFICATE";
const ACCEPTED_KEY: &str = "a readable PEM file with one PRIVATE KEY";

/// The files as the operator names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA that signed the members' certificates; without one the system's roots are trusted.
    pub ca: Option<PathBuf>,
    /// Client certificate; needs `key`.
    pub cert: Option<PathBuf>,
    /// Private key of `cert`.
    pub key: Option<PathBuf>,
}

/// What the files held when they were read. `Debug` shows their names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TlsMaterial {
    ca: Option<Pem>,
    cert: Option<Pem>,
    key: Option<Pem>,
}

/// One file and its content, or why it cannot be read.
#[derive(Clone, PartialEq, Eq)]
struct Pem {
    path: PathBuf,
    content: Result<Vec<u8>, String>,
}

impl TlsFiles {
    /// Reads the files; what is wrong with them is the client's to say.
    #[must_use]
    pub fn read(&self) -> TlsMaterial {
        let pem = |path: &Option<PathBuf>| {
            path.as_ref().filter(|path| !path.as_os_str().is_empty()).map(|path| Pem::read(path))
        };
        TlsMaterial { ca: pem(&self.ca), cert: pem(&self.cert), key: pem(&self.key) }
    }
}

impl Pem {
    fn read(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            content: bounded::read(path, bounded::SETTINGS).map_err(|error| error.to_string()),
        }
    }

    fn text(&self, field: &'static str, accepted: &'static str, errors: &mut Vec<Problem>) -> Option<&[u8]> {
        let content = self.content.as_ref();
        content
            .map_err(|error| errors.push(refuse(field, format!("{}: {error}", self.path.display()), accepted)))
            .ok()
            .map(Vec::as_slice)
    }
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files().fmt(f)
    }
}

impl TlsMaterial {
    /// Where it was read from.
    pub(super) fn files(&self) -> TlsFiles {
        let path = |pem: &Option<Pem>| pem.as_ref().map(|pem| pem.path.clone());
        TlsFiles { ca: path(&self.ca), cert: path(&self.cert), key: path(&self.key) }
    }

    pub(super) const fn any(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// Has its certificates count as used.
    pub(super) fn in_use(&self) -> InUse {
        let text = |pem: &Option<Pem>| pem.as_ref().and_then(|pem| pem.content.as_ref().ok().cloned());
        let (ca, client) = (text(&self.ca), text(&self.cert));
        InUse::of_pem("etcd", [("ca", ca.as_deref()), ("client", client.as_deref())])
    }

    /// Checks it for members spoken to over TLS.
    ///
    /// # Errors
    /// Every file that is missing or malformed, each by its field.
    pub(super) fn options(&self) -> Result<TlsOptions, Vec<Problem>> {
        provider::install();
        let mut errors = Vec::new();
        let options = match &self.ca {
            Some(ca) => certificates_of(CA, ca, &mut errors)
                .map(|ca| TlsOptions::new().ca_certificate(Certificate::from_pem(ca))),
            None => Some(TlsOptions::new().with_native_roots()),
        };
        let identity = self.identity(&mut errors);
        match options {
            Some(options) if errors.is_empty() => Ok(match identity {
                Some(identity) => options.identity(identity),
                None => options,
            }),
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
                let cert = certificates_of(CERT, cert, errors);
                let key = key_of(key, errors);
                let (cert, key) = (cert?, key?);
                if let Err(message) = belong_together(cert, key, CERT) {
                    errors.push(refuse(KEY, message, "the private key of etcd-certfile"));
                }
                Some(Identity::from_pem(cert, key))
            }
        }
    }
}

fn certificates_of<'a>(field: &'static str, file: &'a Pem, errors: &mut Vec<Problem>) -> Option<&'a [u8]> {
    let pem = file.text(field, ACCEPTED_CERT, errors)?;
    let problem = match certificates(pem) {
        Ok(found) if found.is_empty() => "holds no certificate".to_owned(),
        Ok(found) => match found.into_iter().try_for_each(|found| RootCertStore::empty().add(found)) {
            Ok(()) => return Some(pem),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    errors.push(refuse(field, format!("{}: {problem}", file.path.display()), ACCEPTED_CERT));
    None
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(pem).collect()
}

fn key_of<'a>(file: &'a Pem, errors: &mut Vec<Problem>) -> Option<&'a [u8]> {
    let pem = file.text(KEY, ACCEPTED_KEY, errors)?;
    if PrivateKeyDer::from_pem_slice(pem).is_ok() {
        return Some(pem);
    }
    // The parser's own words are not repeated: they may quote the file.
    errors.push(refuse(KEY, format!("{} holds no private key", file.path.display()), ACCEPTED_KEY));
    None
}

fn refuse(field: &'static str, message: String, accepted: &'static str) -> Problem {
    Problem::new(field, message, accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        dir: tempfile::TempDir,
    }

    impl Folder {
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
            let files = TlsFiles { ca: ca.map(path), cert: cert.map(path), key: key.map(path) };
            match files.read().options() {
                Ok(_) => Vec::new(),
                Err(errors) => {
                    assert!(!format!("{errors:?} {:?}", files.read()).contains("SECRET-WORD"));
                    errors.iter().map(|error| error.field.to_string()).collect()
                }
            }
        }
    }

    #[test]
    fn a_ca_the_systems_roots_and_a_client_certificate_are_accepted() {
        let pem = Folder::new();
        assert!(pem.fields(None, None, None).is_empty());
        assert!(pem.fields(None, Some("cert"), Some("key")).is_empty());
        assert!(pem.fields(Some("cert"), None, None).is_empty());
        assert!(pem.fields(Some("cert"), Some("cert"), Some("key")).is_empty());
    }

    #[test]
    fn every_missing_or_malformed_file_is_named_by_its_field() {
        let pem = Folder::new();
        assert_eq!(pem.fields(Some("cert"), Some("cert"), None), ["etcd-keyfile"]);
        assert_eq!(pem.fields(Some("cert"), None, Some("key")), ["etcd-certfile"]);
        assert_eq!(
            pem.fields(Some("absent"), Some("junk"), Some("junk")),
            ["etcd-cafile", "etcd-certfile", "etcd-keyfile"]
        );
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_before_the_first_handshake() {
        let pem = Folder::new();
        assert_eq!(pem.fields(Some("cert"), Some("cert"), Some("other-key")), ["etcd-keyfile"]);
        assert_eq!(pem.fields(Some("bent"), None, None), ["etcd-cafile"]);
    }

    #[test]
    fn a_file_without_end_is_refused_by_its_field() {
        let file = || Some(PathBuf::from("/dev/zero"));
        let errors = TlsFiles { ca: file(), cert: file(), key: file() }.read().options().err().unwrap();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors.iter().all(|error| error.to_string().contains("more than 1048576 bytes")), "{errors:?}");
    }

    #[test]
    fn an_empty_path_is_an_absent_one() {
        assert!(!TlsFiles { ca: Some(PathBuf::new()), cert: Some(PathBuf::new()), key: None }.read().any());
    }

    #[test]
    fn a_file_that_was_replaced_differs_from_what_was_read() {
        let pem = Folder::new();
        let files = TlsFiles { ca: Some(pem.dir.path().join("cert")), ..TlsFiles::default() };
        let before = files.read();
        assert_eq!(before, before.files().read());
        std::fs::copy(pem.dir.path().join("other-key"), pem.dir.path().join("cert")).unwrap();
        assert_ne!(before, before.files().read());
    }
}
