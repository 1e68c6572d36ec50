//! `Keys`: authorities and certificates of a rendered folder, with which components are asked.
//!
//! Invariant: what is not there is missing, and said where it is needed; no key is in any text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::{Ca, authority_file};

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
    /// Reads what is in the folder that `netdadm render` made, and of CAs in the folder of those that were there before.
    ///
    /// # Errors
    /// When a file is there and cannot be used.
    pub(crate) fn read(out: &Path, given: Option<&Path>) -> Result<Self, String> {
        let pki = out.join("pki");
        if !pki.is_dir() {
            return Err(format!("{} has no folder pki: it is none that netdadm rendered", out.display()));
        }
        let client = pki.join("etcd/healthcheck-client.crt");
        let admin = pki.join("admin.conf");
        Ok(Self {
            cluster: authorities(&authority_file(Ca::Cluster, out, given))?,
            etcd: authorities(&authority_file(Ca::Etcd, out, given))?,
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
    let bytes = bounded::read(&path, bounded::SETTINGS).map_err(|error| format!("read {}: {error}", path.display()))?;
    // The reason may not repeat what is in the file.
    let key =
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| format!("read {}: no private key in PEM", path.display()))?;
    Ok(Identity { chain: certificates(certificate)?, key })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = bounded::read(path, bounded::SETTINGS).map_err(|error| format!("read {}: {error}", path.display()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("read {}: {error}", path.display()))?;
    if found.is_empty() { Err(format!("read {}: no certificate in PEM", path.display())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::members::Session;
    use crate::output::{Folder, assemble};
    use crate::pki::{Store, Time};
    use crate::status::since_1970;
    use crate::topology::Topology;

    /// Renders a topology into `out`.
    fn render(text: &str, out: &Path, given: Option<&Path>) -> Topology {
        let topology = check::text(text).topology.unwrap();
        let mut store = Store::open(Some(out), given, Time::after_1970(since_1970())).unwrap();
        let files = assemble(&topology, &mut store).unwrap();
        Folder::open(out, "reference").unwrap().write(&files).unwrap();
        topology
    }

    #[test]
    fn authorities_that_were_there_before_are_used_from_where_they_are() {
        let top = tempfile::tempdir().unwrap();
        let reference = include_str!("../../../configs/clusters/reference.yaml");
        render(reference, &top.path().join("first"), None);
        let (given, out) = (top.path().join("first/pki"), top.path().join("out"));
        let text = format!("{reference}pki: {}\n", given.display());
        let topology = render(&text, &out, Some(&given));
        assert!(!out.join("pki/etcd/ca.crt").exists());
        let keys = Keys::read(&out, Some(&given)).unwrap();
        assert!(keys.etcd.is_some() && keys.cluster.is_some() && keys.member_client.is_some() && keys.admin.is_some());
        assert!(Keys::read(&out, None).unwrap().etcd.is_none());
        assert!(Session::open(&topology, &out, std::time::Duration::from_secs(1)).is_ok());
    }
}
