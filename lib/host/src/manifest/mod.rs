//! `Manifest`: the files and units of one host, as a rendered folder lists them beside its tree.
//!
//! Pure. Invariant: a manifest that was read names absolute plain paths only, none below another, and units of systemd: nothing
//! in it leads out of the tree or into a shell.

mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use words::{Digest, FileOwner, Mode};

/// The form of manifests that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The longest manifest that is read, in bytes: thousands of files.
const SIZE: usize = 4 << 20;

/// The longest time that a manifest asks to wait for a unit, in seconds.
const LONGEST_WAIT: u32 = 3600;

/// What one host gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the cluster is called.
    pub cluster: String,
    /// SHA-256 of the DER of the cluster's CA: clusters of one name differ in it.
    pub authority: Digest,
    /// The host's name in the topology.
    pub host: String,
    /// Each file by its path on the host.
    #[serde(deserialize_with = "words::once")]
    pub files: BTreeMap<PathBuf, FileEntry>,
    /// The units in the order in which they start.
    pub units: Vec<UnitEntry>,
}

/// A file of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its permissions.
    pub mode: Mode,
    /// Who owns it.
    pub owner: FileOwner,
    /// SHA-256 of its content.
    pub sha256: Digest,
}

/// A unit of systemd on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitEntry {
    /// Its name, `etcd.service`.
    pub name: String,
    /// Files whose change asks for a restart. A change of any other asks for nothing.
    pub restart: Vec<PathBuf>,
    /// Files whose change asks for a reload.
    pub reload: Vec<PathBuf>,
    /// What answers when it serves, if something does.
    pub ready: Option<Ready>,
    /// False when it is started and not waited for: alone, a member of a new etcd has no leader.
    pub wait: bool,
}

/// What answers 200 when a unit serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Where, by http or https.
    pub url: String,
    /// The CA of the server's certificate.
    pub authority: Option<PathBuf>,
    /// The certificate to show.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// How long it may take until the answer is 200.
    pub seconds: u32,
}

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the manifest is refused: {0}; it is the manifest.json of a host that `netdadm render` wrote")]
pub struct Refusal(String);

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is none, is of another format, or names what no host can have.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > SIZE {
            return Err(Refusal(format!("it has {} bytes, more than {SIZE}", bytes.len())));
        }
        let read = serde_json::from_slice(bytes);
        let manifest: Self = read.map_err(|cause| Refusal(words::shortened(&cause.to_string())))?;
        manifest.check().map_err(|found| Refusal(words::shortened(&found)))?;
        Ok(manifest)
    }

    /// The text that [`Manifest::parse`] reads, the same for equal manifests.
    #[must_use]
    pub fn text(&self) -> String {
        // Maps with texts as keys, lists and numbers are always written.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}, this program reads {FORMAT}", self.format));
        }
        words::name("cluster", &self.cluster)?;
        words::name("host", &self.host)?;
        for path in self.files.keys() {
            words::path(path)?;
            if let Some(folder) = path.ancestors().skip(1).find(|folder| self.files.contains_key(*folder)) {
                return Err(format!("{} lies below {}, which is a file", path.display(), folder.display()));
            }
        }
        for (index, unit) in self.units.iter().enumerate() {
            unit.check()?;
            if self.units.iter().take(index).any(|other| other.name == unit.name) {
                return Err(format!("unit {} stands there twice", unit.name));
            }
        }
        Ok(())
    }
}

impl UnitEntry {
    fn check(&self) -> Result<(), String> {
        words::unit(&self.name)?;
        self.restart.iter().chain(&self.reload).try_for_each(|path| words::path(path))?;
        self.ready.as_ref().map_or(Ok(()), Ready::check)
    }
}

impl Ready {
    fn check(&self) -> Result<(), String> {
        words::url(&self.url)?;
        if !(1..=LONGEST_WAIT).contains(&self.seconds) {
            return Err(format!("{} is waited for {} seconds, not 1 to {LONGEST_WAIT}", self.url, self.seconds));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err(format!("{} has a certificate without its key, or a key alone", self.url));
        }
        [&self.authority, &self.certificate, &self.key].into_iter().flatten().try_for_each(|path| words::path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETCD: &str = include_str!("../../fuzz/manifest/etcd");

    fn changed(from: &str, to: &str) -> String {
        assert!(ETCD.contains(from), "{from}");
        ETCD.replacen(from, to, 1)
    }

    #[test]
    fn a_manifest_is_read_as_it_is_written() {
        let manifest = Manifest::parse(ETCD.as_bytes()).unwrap();
        let key = &manifest.files[&PathBuf::from("/etc/etcd/pki/server.key")];
        assert_eq!((key.mode.bits(), key.owner.user(), key.owner.group()), (0o600, "etcd", "etcd"));
        assert_eq!(manifest.units[0].name, "etcd.service");
        assert_eq!(manifest.text(), ETCD);
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
    }

    #[test]
    fn what_leads_out_of_the_tree_or_is_no_manifest_is_refused_with_the_reason() {
        let cases = [
            ("\"format\": 1", "\"format\": 2", "its format is 2"),
            ("\"cluster\": ", "\"colour\": \"red\", \"cluster\": ", "unknown field `colour`"),
            ("\"cluster\": \"reference\",", "", "missing field `cluster`"),
            ("\"reference\"", "\"../x\"", "cluster \"../x\""),
            ("\"hdss7-12\"", "\"\"", "host \"\""),
            ("/etc/etcd/etcd.conf", "etc/etcd/etcd.conf", "no absolute plain path"),
            ("/etc/etcd/etcd.conf", "/etc/../etcd.conf", "no absolute plain path"),
            ("/etc/etcd/etcd.conf", "/etc//etcd.conf", "no absolute plain path"),
            ("/etc/etcd/etcd.conf", "/etc/a\\nb", "no absolute plain path"),
            ("/etc/etcd/etcd.conf", "/", "no absolute plain path"),
            ("/etc/etcd/etcd.conf", "/etc/etcd/pki", "which is a file"),
            ("/etc/etcd/etcd.conf", "/etc/etcd/pki/server.key", "stands there twice"),
            ("\"0600\"", "\"4755\"", "no mode"),
            ("\"0600\"", "\"600\"", "no mode"),
            ("\"etcd:etcd\"", "\"etcd\"", "no owner"),
            ("\"etcd:etcd\"", "\"etcd:a b\"", "no owner"),
            ("etcd.service", "etcd", "no unit"),
            ("etcd.service", "/x.service", "no unit"),
            ("https://127", "file://127", "no URL"),
            ("https://127.0.0.1:2379/health", "https://127.0.0.1 /", "no URL"),
            ("\"seconds\": 60", "\"seconds\": 0", "0 seconds"),
            ("\"certificate\": \"/etc/etcd/pki/healthcheck.crt\"", "\"certificate\": null", "a key alone"),
            ("\"wait\": false", "\"wait\": 1", "expected a boolean"),
        ];
        for (from, to, said) in cases {
            let refusal = Manifest::parse(changed(from, to).as_bytes()).unwrap_err().to_string();
            assert!(refusal.contains(said), "{from} -> {to}: {refusal}");
        }
        assert!(Manifest::parse(&vec![b' '; SIZE + 1]).is_err());
    }

    #[test]
    fn what_is_one_too_long_or_of_another_form_is_refused_and_the_longest_is_not() {
        let accepts = |from: &str, to: &str| Manifest::parse(changed(from, to).as_bytes()).is_ok();
        let (conf, url, digest) = ("/etc/etcd/etcd.conf", "https://127.0.0.1:2379/health", "0".repeat(64));
        let of = |length: usize, begin: &str, end: &str| {
            format!("{begin}{}{end}", "a".repeat(length - begin.len() - end.len()))
        };
        let lengths = [
            ("hdss7-12", 253, "", ""),
            ("reference", 253, "", ""),
            (conf, 1024, "/", ""),
            (url, 1024, "http://", ""),
            ("etcd.service", 255, "", ".service"),
            ("etcd:etcd", 32 + 5, "etcd:", ""),
            ("etcd:etcd", 32 + 5, "", ":etcd"),
        ];
        for (from, longest, begin, end) in lengths {
            assert!(accepts(from, &of(longest, begin, end)), "{from} of {longest}");
            assert!(!accepts(from, &of(longest + 1, begin, end)), "{from} of {}", longest + 1);
        }
        for owner in ["kube-api_1:etcd", "etcd:0"] {
            assert!(accepts("etcd:etcd", owner), "{owner}");
        }
        for owner in [":etcd", "etcd:", "-a:etcd", "etcd:-a", "Etcd:etcd", "a:b:c"] {
            assert!(!accepts("etcd:etcd", owner), "{owner}");
        }
        for mode in ["0800", "00600", "06", "1644", "+600", "0o60"] {
            assert!(!accepts("\"0600\"", &format!("{mode:?}")), "{mode}");
        }
        for wrong in ["F".repeat(64), "g".repeat(64), "0".repeat(63), "0".repeat(65)] {
            assert!(!accepts(&digest, &wrong), "{wrong}");
        }
        assert!(accepts(&digest, &"9af".repeat(22)[..64]));
        for wrong in ["https://", "https:///health", "http:/a"] {
            assert!(!accepts(url, wrong), "{wrong}");
        }
        for (from, wrong) in
            [("hdss7-12", ".."), ("hdss7-12", "a_b"), ("etcd.service", ".service"), ("etcd.service", "a.path")]
        {
            assert!(!accepts(from, wrong), "{wrong}");
        }
        for (seconds, is_accepted) in [("1", true), ("3600", true), ("3601", false)] {
            assert_eq!(accepts("\"seconds\": 60", &format!("\"seconds\": {seconds}")), is_accepted, "{seconds}");
        }
        assert!(!accepts("\"reload\": []", "\"reload\": [\"../x\"]"));
        let mut spaced = ETCD.as_bytes().to_vec();
        spaced.resize(SIZE, b' ');
        assert!(Manifest::parse(&spaced).is_ok());
    }

    #[test]
    fn a_unit_stands_there_once() {
        let mut manifest = Manifest::parse(ETCD.as_bytes()).unwrap();
        let mut second = manifest.units[0].clone();
        second.name = "kubelet.service".to_owned();
        manifest.units.push(second);
        assert_eq!(Manifest::parse(manifest.text().as_bytes()).as_ref(), Ok(&manifest));
        manifest.units[1].name = "etcd.service".to_owned();
        let refusal = Manifest::parse(manifest.text().as_bytes()).unwrap_err().to_string();
        assert!(refusal.contains("unit etcd.service stands there twice"), "{refusal}");
    }
}
