//! A certificate authority for one test: CA, server, client, and a CA nobody trusts.

use std::fs;
use std::path::PathBuf;

use cluster::etcd::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

/// Files `ca.pem`, `server.{pem,key}`, `client.{pem,key}` and `stranger.pem`.
pub(crate) struct Pki {
    dir: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self { dir: tempfile::tempdir().unwrap() };
        pki.write("stranger.pem", &authority("somebody else's CA").pem());
        pki.renew();
        pki
    }

    /// Replaces everything: another CA, and what it signs.
    pub(crate) fn renew(&self) {
        let ca = authority("cluster test CA");
        // etcd asks its own server certificate for both uses (its gRPC gateway is a client of itself).
        self.issue(&ca, "server", &["127.0.0.1", "localhost"]);
        self.issue(&ca, "client", &["netd"]);
        self.write("ca.pem", &ca.pem());
    }

    /// CA, certificate and key of the client.
    pub(crate) fn client(&self) -> TlsFiles {
        let path = |name| Some(self.path(name));
        TlsFiles { ca: path("ca.pem"), cert: path("client.pem"), key: path("client.key") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, ca: &CertifiedIssuer<'_, KeyPair>, name: &str, subjects: &[&str]) {
        let subjects: Vec<String> = subjects.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(subjects).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, ca).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
