//! Authorities that openssl made, in every form that operators have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::*;

/// A folder with openssl in it.
pub(super) struct Folder(TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(super) fn put(&self, name: &str, text: &str) {
        fs::create_dir_all(self.file(name).parent().unwrap()).unwrap();
        fs::write(self.file(name), text).unwrap();
    }

    pub(super) fn get(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// openssl with the words of `line`, in this folder.
    pub(super) fn openssl(&self, line: &str) {
        self.try_openssl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }

    fn try_openssl(&self, words: &[&str]) -> Result<(), String> {
        let done = Command::new("openssl").args(words).current_dir(self.path()).output();
        let done = done.expect("openssl is executed; Debian's package is openssl");
        let said = || format!("openssl {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        if done.status.success() { Ok(()) } else { Err(said()) }
    }

    /// Whether `leaf.crt` is believed by who believes `ca.crt`.
    pub(super) fn verify(&self, words: &[&str]) -> Result<(), String> {
        self.try_openssl(&[&["verify", "-x509_strict", "-CAfile", "ca.crt"], words, &["leaf.crt"]].concat())
    }

    /// A certificate `NAME.crt` that `NAME.key` has signed itself.
    pub(super) fn root(&self, name: &str, subject: &str, extensions: &[&str]) {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        let mut words =
            vec!["req", "-x509", "-new", "-key", &key, "-out", &certificate, "-days", "30", "-subj", subject];
        extensions.iter().for_each(|extension| words.extend(["-addext", extension]));
        self.try_openssl(&words).unwrap();
    }

    /// The authorities and keys of a cluster as kubeadm lays them out, the keys of the cluster's CA and of tokens by `line`.
    pub(super) fn kubeadm(&self, line: &str) {
        fs::create_dir_all(self.file("etcd")).unwrap();
        for ca in [Ca::Cluster, Ca::Etcd, Ca::FrontProxy] {
            let line = if ca == Ca::Cluster { line } else { FORMS[4].0 };
            self.openssl(&line.replace("FILE", &format!("{}.key", ca.path())));
            self.root(ca.path(), &format!("/CN={}", ca.common_name()), &["keyUsage=critical,keyCertSign,cRLSign"]);
        }
        self.openssl(&line.replace("FILE", "sa.key"));
        self.openssl("pkey -in sa.key -pubout -out sa.pub");
    }
}

/// How openssl makes a key, and the line that its file has.
const FORMS: [(&str, &str); 5] = [
    ("genrsa -traditional -out FILE 2048", "-----BEGIN RSA PRIVATE KEY-----"),
    ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out FILE", "-----BEGIN PRIVATE KEY-----"),
    ("ecparam -name prime256v1 -genkey -out FILE", "-----BEGIN EC PARAMETERS-----"),
    ("ecparam -name secp384r1 -genkey -noout -out FILE", "-----BEGIN EC PRIVATE KEY-----"),
    ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE", "-----BEGIN PRIVATE KEY-----"),
];

#[test]
fn authorities_of_an_existing_cluster_sign_whatever_form_their_keys_have() {
    for (line, head) in FORMS {
        let folder = Folder::new();
        folder.kubeadm(line);
        assert!(folder.get("ca.key").starts_with(head), "{line}");
        let mut store = Store::open(None, Some(folder.path()), now()).unwrap();
        assert_eq!(store.issued(), [], "{line}");
        assert_eq!(store.service_account(), (&Secret::new(folder.get("sa.key")), folder.get("sa.pub").as_str()));
        assert_eq!(store.authority(Ca::Cluster).certificate_pem, folder.get("ca.crt"));
        let pair = store.issue(&kubelet()).unwrap();
        folder.put("leaf.crt", &pair.certificate_pem);
        folder.verify(&["-purpose", "sslclient"]).unwrap_or_else(|why| panic!("{line}: {why}"));
    }
}

#[test]
fn an_authority_without_key_identifier_or_with_other_fields_is_believed_for_what_it_signs() {
    for (subject, extensions) in [
        ("/CN=kubernetes-ca", &["subjectKeyIdentifier=none", "authorityKeyIdentifier=none"][..]),
        ("/C=CN/ST=Beijing/L=Beijing/O=k8s/OU=System/CN=kubernetes", &[]),
        ("/CN=K\u{fc}bernetes", &[]),
    ] {
        let folder = Folder::new();
        folder.kubeadm(FORMS[4].0);
        folder.root("ca", subject, extensions);
        let mut store = Store::open(None, Some(folder.path()), now()).unwrap();
        let pair = store.issue(&kubelet()).unwrap();
        folder.put("leaf.crt", &pair.certificate_pem);
        let strict = ["verify", "-purpose", "sslclient", "-CAfile", "ca.crt", "leaf.crt"];
        folder.try_openssl(&strict).unwrap_or_else(|why| panic!("{subject}: {why}"));
    }
}

/// rcgen keeps one field of a kind: what it signs would name another issuer.
#[test]
fn an_authority_whose_subject_cannot_be_copied_signs_nothing() {
    let folder = Folder::new();
    folder.kubeadm(FORMS[4].0);
    folder.root("ca", "/O=one/O=two/CN=kubernetes", &[]);
    let mut store = Store::open(None, Some(folder.path()), now()).unwrap();
    let fault = store.issue(&kubelet()).unwrap_err().to_string();
    assert!(fault.contains("is not believed: its subject cannot be copied"), "{fault}");
    assert_eq!(store.issued(), []);
}
