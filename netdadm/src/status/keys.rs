//! `Keys`: authorities and certificates of a rendered folder, with which components are asked.
//!
//! Invariant: what is not there is missing, and said where it is needed; no key is in any text.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a client shows, and its key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// What could be read below `pki/`.
#[derive(Clone, Default)]
pub(crate) struct Keys {
    /// Authorities of API servers.
    pub(super) cluster: Option<Arc<RootCertStore>>,
    /// Authorities of members of etcd.
    pub(super) etcd: Option<Arc<RootCertStore>>,
    /// The client of etcd.
    pub(super) member_client: Option<Arc<Identity>>,
    /// The kubeconfig of an administrator.
    pub(super) admin: Option<PathBuf>,
}

impl Keys {
    /// Reads what is in the folder that `netdadm render` made.
    ///
    /// # Errors
    /// When a file is there and cannot be used.
    pub(crate) fn read(out: &Path) -> Result<Self, String> {
        let pki = out.join("pki");
        if !pki.is_dir() {
            return Err(format!("{} has no folder pki: it is none that netdadm rendered", out.display()));
        }
        let client = pki.join("etcd/healthcheck-client.crt");
        let admin = pki.join("admin.conf");
        Ok(Self {
            cluster: authorities(&pki.join("ca.crt"))?,
            etcd: authorities(&pki.join("etcd/ca.crt"))?,
            member_client: if client.exists() { Some(Arc::new(identity(&client)?)) } else { None },
            admin: Some(admin).filter(|admin| admin.exists()),
        })
    }
}

fn authorities(path: &Path) -> Result<Option<Arc<RootCertStore>>, String> {
    if !path.exists() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("read {}: {error}", path.display()))?;
    }
    Ok(Some(Arc::new(roots)))
}

fn identity(certificate: &Path) -> Result<Identity, String> {
    let path = certificate.with_extension("key");
    let bytes = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    // The reason may not repeat what is in the file.
    let key =
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| format!("read {}: no private key in PEM", path.display()))?;
    Ok(Identity { chain: certificates(certificate)?, key })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("read {}: {error}", path.display()))?;
    if found.is_empty() { Err(format!("read {}: no certificate in PEM", path.display())) } else { Ok(found) }
}
