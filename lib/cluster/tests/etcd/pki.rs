//! A certificate authority for one test: CA, server, client, and a CA nobody trusts.

use std::fs;
use std::path::PathBuf;

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
        let ca = authority("cluster test CA");
        pki.write("ca.pem", &ca.pem());
        pki.write("stranger.pem", &authority("somebody else's CA").pem());
        // etcd asks its own server certificate for both uses (its gRPC gateway is a client of itself).
        pki.issue(&ca, "server", &["127.0.0.1", "localhost"]);
        pki.issue(&ca, "client", &["netd"]);
        pki
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
