//! The files of a folder that have certificates, with the keys beside them.
//!
//! Invariant: the search is bounded in depth and number, follows no folder that is a link, and what it cannot read is named.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::document::{Content, Node, parse};
use crate::pki::{self, read, suffixed};

/// Levels of folders below these.
const DEPTH: usize = 4;
/// Files of one place.
const MOST: usize = 10_000;

/// Where to search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The host whose files lie there; none for what operators keep, and on the host itself.
    host: Option<String>,
    folders: Vec<PathBuf>,
}

/// What a file has, or why it has nothing.
type Bytes = Result<Vec<u8>, String>;

/// A file with certificates.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// The host that gets it.
    pub(crate) host: Option<String>,
    /// The file.
    pub(crate) file: String,
    /// The certificates in PEM, or why there are none.
    pub(crate) certificates: Bytes,
    /// The key beside it, if there is one.
    pub(crate) key: Option<Bytes>,
}

impl Place {
    /// Folders below the root of a host: kubeadm's, kubelet's, and those of the guides that need no kubeadm.
    pub(crate) const FOLDERS: [&str; 4] = ["etc/kubernetes", "etc/etcd", "var/lib/kubelet/pki", "var/lib/kubernetes"];

    /// The host whose root is `root`.
    pub(crate) fn root(root: &Path) -> Self {
        Self { host: None, folders: Self::FOLDERS.map(|folder| root.join(folder)).into() }
    }

    /// What `render` wrote into `folder`: operators' own, and each host's.
    ///
    /// # Errors
    /// When no `render` wrote there.
    pub(crate) fn rendered(folder: &Path) -> Result<Vec<Self>, String> {
        let hosts = folder.join("hosts");
        let named = |cause| format!("read {}: {cause}; name the folder that `netdadm render` wrote", hosts.display());
        let mut places = vec![Self { host: None, folders: vec![folder.join("pki")] }];
        for entry in fs::read_dir(&hosts).map_err(named)? {
            let entry = entry.map_err(named)?;
            let host = entry.file_name().to_string_lossy().into_owned();
            places.push(Self { host: Some(host), ..Self::root(&entry.path().join("root")) });
        }
        places.sort_by(|one, other| one.host.cmp(&other.host));
        Ok(places)
    }
}

/// Every file of `place` that has certificates.
pub(crate) fn search(place: &Place) -> Vec<Text> {
    let (mut files, mut unread) = (Vec::new(), Vec::new());
    for folder in &place.folders {
        walk(folder, DEPTH, &mut files, &mut unread);
    }
    let unread = unread.into_iter().map(|(folder, why)| Text {
        host: place.host.clone(),
        file: folder.display().to_string(),
        certificates: Err(why),
        key: None,
    });
    files.iter().filter_map(|file| text(place, file)).chain(unread).collect()
}

fn walk(folder: &Path, depth: usize, files: &mut Vec<PathBuf>, unread: &mut Vec<(PathBuf, String)>) {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut paths: Vec<PathBuf> = match entries {
        Ok(entries) => entries.iter().map(fs::DirEntry::path).collect(),
        Err(cause) if cause.kind() == ErrorKind::NotFound => return,
        Err(cause) => {
            unread.push((folder.to_path_buf(), format!("what lies in it cannot be listed: {cause}; ask as root")));
            return;
        }
    };
    paths.sort();
    for path in paths {
        if files.len() >= MOST {
            unread.push((path, format!("it and what follows was not read: there are {MOST} files before it")));
            return;
        }
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        // A link that leads nowhere is a file that cannot be read.
        let is_file = || fs::metadata(&path).map_or(true, |found| found.is_file());
        match path.extension().and_then(|suffix| suffix.to_str()) {
            _ if is_folder && depth > 0 => walk(&path, depth - 1, files, unread),
            Some("crt" | "pem" | "conf" | "kubeconfig") if is_file() => files.push(path),
            _ => {}
        }
    }
}

/// The certificates of a file; nothing for one that has none and need not have any.
fn text(place: &Place, file: &Path) -> Option<Text> {
    let suffix = file.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    let bytes = read(file)
        .map_err(|fault| fault.flaw.to_string())
        .and_then(|found| found.ok_or_else(|| "it has gone".to_owned()));
    let (certificates, key) = match (suffix, bytes) {
        ("conf" | "kubeconfig", Ok(bytes)) => {
            let (certificate, key) = inline(&bytes)?;
            (certificate, key.map(Ok))
        }
        // Keys of guides without kubeadm are `.pem` as well.
        ("pem", Ok(bytes)) if !contains(&bytes, "-----BEGIN CERTIFICATE-----") => return None,
        (_, Ok(bytes)) if contains(&bytes, "PRIVATE KEY-----") => (Ok(bytes.clone()), Some(Ok(bytes))),
        (_, bytes) => (bytes, key_beside(file)),
    };
    Some(Text { host: place.host.clone(), file: file.display().to_string(), certificates, key })
}

/// The key whose name differs from that of the certificate as kubeadm's or the guides' do.
fn key_beside(file: &Path) -> Option<Bytes> {
    let stem = file.with_extension("");
    let name = format!("{}-key", stem.file_name()?.to_string_lossy());
    let places = [suffixed(&stem, "key"), suffixed(&stem.with_file_name(name), "pem")];
    let found = places.iter().map(|place| read(place)).find(|found| !matches!(found, Ok(None)))?;
    Some(found.map(Option::unwrap_or_default).map_err(|fault| fault.to_string()))
}

/// Certificate and key that stand in a kubeconfig; nothing when it names files, or is none.
fn inline(bytes: &[u8]) -> Option<(Bytes, Option<Vec<u8>>)> {
    let text = String::from_utf8_lossy(bytes);
    let document = parse(&text).ok()?;
    let user = first(field(&document, "users")?).and_then(|user| field(user, "user"))?;
    let data = |name: &str| Some(pki::base64(scalar(field(user, name)?)?));
    let certificate = data("client-certificate-data")?;
    let bad = || "`client-certificate-data` is no base64; write the kubeconfig anew".to_owned();
    Some((certificate.ok_or_else(bad), data("client-key-data").flatten()))
}

fn field<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Content::Map(entries) = &node.content else { return None };
    entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}

fn first(node: &Node) -> Option<&Node> {
    let Content::List(nodes) = &node.content else { return None };
    nodes.first()
}

fn scalar(node: &Node) -> Option<&str> {
    let Content::Scalar(text) = &node.content else { return None };
    Some(text)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
