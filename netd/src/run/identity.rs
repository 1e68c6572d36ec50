//! What a node brings along for its backend: the private key of its WireGuard devices, or the text of the operator's
//! own program.
//!
//! Invariants: the key is in no message and in no plan, which knows its public half only; it is made once, on a disk, and
//! stays for as long as the file does and no other node has it, so the other nodes know this one after a reboot; nobody else can read
//! the file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use kernel::wireguard::Wireguards;
use netstate::wireguard::{PrivateKey, PublicKey};
use x25519_dalek::StaticSecret;

use super::extension;
use crate::choose::subnet::{Candidate, Claim};
use crate::command::config::{Config, WIREGUARD_KEY_FILE};
use crate::format::lease::{Lease, StoredLease};
use crate::plan::backend::Backend;
use crate::source::{LeaseEvent, LeaseRecord, LeaseSource};

/// Where flannel keeps its key, until the next boot.
const FLANNELS: &str = "/run/flannel/wgkey";

/// Rights of others on the file.
const OTHERS: u32 = 0o077;

/// What the backend needs of this node.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    /// Of its WireGuard devices.
    pub(super) key: Option<PrivateKey>,
    /// What the operator's program says for the lease.
    pub(super) data: Option<String>,
}

impl Identity {
    /// Reads what `backend` needs; a key that is needed and not there is made.
    ///
    /// # Errors
    /// When a file is there and cannot be read or holds something else, when a key cannot be kept, or when this kernel
    /// does not have what the key is for.
    pub(super) fn of(backend: &Backend, config: &Config) -> Result<Self> {
        let mut identity = Self::default();
        if backend.needs_key() {
            Wireguards::open([]).context("backend wireguard needs Linux 5.6 or later with the module wireguard")?;
            identity.key = Some(key(&config.wireguard_key_file)?);
        }
        if backend.needs_files() {
            identity.data = extension::data(&config.run_dir)?;
        }
        Ok(identity)
    }

    /// The same with what `other` has besides.
    #[must_use]
    pub(super) fn or(self, other: &Self) -> Self {
        Self { key: self.key.or_else(|| other.key.clone()), data: self.data.or_else(|| other.data.clone()) }
    }

    /// The same with another key where a living lease of another node has this one's: a copy of a disk has the key of the original, and
    /// of two nodes with one key the others reach one. `node` is this one; `record` has the leases that it held.
    ///
    /// # Errors
    /// When the other key cannot be kept.
    pub(super) async fn distinct<S: LeaseSource>(
        self,
        source: &S,
        node: &Candidate,
        record: &LeaseRecord,
        file: &Path,
    ) -> Result<Self> {
        let Some(key) = self.public_key().filter(|_| source.is_shared()) else { return Ok(self) };
        // Where the store does not answer now, the lease is waited for as well, and the key stays as it is.
        let Ok(listing) = source.list().await else { return Ok(self) };
        let Some(other) = holder(&listing, key, node, record) else { return Ok(self) };
        let aside = file.with_extension("of-another-node");
        fs::rename(file, &aside).with_context(|| format!("move {} aside", file.display()))?;
        tracing::warn!(
            other = other.attrs.public_ips.list(), file = %file.display(), aside = %aside.display(),
            "this node's WireGuard key is another node's: is its disk a copy? It gets a key of its own"
        );
        Ok(Self { key: Some(key_at(file, None)?), ..self })
    }

    /// The key's public half.
    pub(super) fn public_key(&self) -> Option<PublicKey> {
        self.key.as_ref().map(public)
    }
}

/// The lease of another node that has `key`. A reservation, which has no end, may be of a node that is no more.
fn holder<'a>(listing: &'a [LeaseEvent], key: PublicKey, node: &Candidate, record: &LeaseRecord) -> Option<&'a Lease> {
    let leases = listing.iter().flat_map(|event| match event {
        LeaseEvent::Put(stored) => std::slice::from_ref(stored),
        LeaseEvent::Puts(leases) => leases,
        _ => &[],
    });
    let is_others = |stored: &&Arc<StoredLease>| {
        let recorded = record.has(&stored.lease.key, stored.token);
        let has_key = stored.lease.attrs.backend.keys().present().any(|(_, other)| *other == key);
        let claim = Claim { stored: Arc::clone(stored), recorded };
        has_key && stored.token.is_some() && !node.owns(&claim)
    };
    leases.into_iter().find(is_others).map(|stored| &stored.lease)
}

fn public(key: &PrivateKey) -> PublicKey {
    PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(*key.expose())).to_bytes())
}

fn key(path: &Path) -> Result<PrivateKey> {
    if path == Path::new(WIREGUARD_KEY_FILE) { key_at(path, Some(Path::new(FLANNELS))) } else { key_at(path, None) }
}

/// The key in `path`. One that flannel has made since goes before it: the other nodes know this node by that.
fn key_at(path: &Path, flannels: Option<&Path>) -> Result<PrivateKey> {
    let own = read(path)?;
    let adopted = match flannels.map(read) {
        None => None,
        Some(Ok(found)) => found,
        Some(Err(error)) => {
            tracing::warn!("the key that flannel left is not used: {error:#}");
            None
        }
    };
    if let Some(own) = own.as_ref().filter(|own| adopted.as_ref().is_none_or(|adopted| adopted == *own)) {
        return Ok(own.clone());
    }
    let how = if adopted.is_some() { "taken over from flannel" } else { "made" };
    let key = adopted.unwrap_or_else(generated);
    write(path, &key).with_context(|| {
        format!(
            "write {}: this node's key must outlive a reboot; name another place in --wireguard-key-file",
            path.display()
        )
    })?;
    tracing::info!(file = %path.display(), public_key = %public(&key), how, "this node's WireGuard key");
    Ok(key)
}

fn generated() -> PrivateKey {
    let [first, middle @ .., last] = StaticSecret::random().to_bytes();
    // As `wg genkey` prints it and the kernel holds it (RFC 7748 §5).
    let mut key = [0; netstate::wireguard::KEY_LEN];
    let bytes = [first & 0xf8].into_iter().chain(middle).chain([(last & 0x7f) | 0x40]);
    key.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    PrivateKey::new(key)
}

/// Reads a key file; `None` when there is none.
fn read(path: &Path) -> Result<Option<PrivateKey>> {
    let text = match bounded::read_text(path, bounded::SETTINGS) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let Ok(key) = text.trim().parse() else {
        bail!("{} holds no WireGuard key: put the right one there, or remove the file for a new one", path.display());
    };
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & OTHERS != 0 {
        tracing::warn!(file = %path.display(), "others may read this node's WireGuard key: chmod 600 it");
    }
    Ok(Some(key))
}

/// Writes the file whole, for the owner alone from the beginning, and onto the disk.
fn write(path: &Path, key: &PrivateKey) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft: PathBuf = folder.join(format!(".wgkey-{}", std::process::id()));
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(format!("{}\n", key.expose_text()).as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use netstate::family::PerFamily;

    use super::*;
    use crate::choose::interface::NodeAddress;
    use crate::format::lease::read_lease;

    /// RFC 7748 §6.1, Alice's keys.
    const ALICE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const ALICES_PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn public_half_is_that_of_the_standard() {
        assert_eq!(public(&ALICE.parse().unwrap()).to_string(), ALICES_PUBLIC);
    }

    #[test]
    fn key_is_anothers_where_a_lease_with_an_end_says_so_that_is_not_this_nodes() {
        let stored = |address: &str, key: &str, token| {
            let value = format!(
                r#"{{"PublicIP":"{address}","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}"}}}}"#
            );
            let lease = read_lease("172.7.22.0-24", value.as_bytes()).unwrap();
            LeaseEvent::Put(Arc::new(StoredLease { lease, created: 1, revision: 1, token }))
        };
        let address = "10.4.7.21".parse().unwrap();
        let own = NodeAddress { address, network: "10.4.7.0/24".parse().unwrap(), public_ip: address };
        let addresses = PerFamily::new(Some(own), None);
        let key = ALICES_PUBLIC.parse().unwrap();
        let node = Candidate { addresses, public_key: Some(key), ..Candidate::default() };
        let lived =
            Candidate { previous: PerFamily::new(Some("172.7.22.0/24".parse().unwrap()), None), ..node.clone() };
        let (unknown, recorded) = (LeaseRecord::default(), "172.7.22.0-24 7\n".parse().unwrap());
        let other = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
        for (address, of_it, token, node, record, is_others) in [
            ("10.4.7.22", ALICES_PUBLIC, Some(7), &node, &unknown, true),
            ("10.4.7.22", other, Some(7), &node, &unknown, false),
            ("10.4.7.22", ALICES_PUBLIC, None, &node, &unknown, false),
            ("10.4.7.21", ALICES_PUBLIC, Some(7), &node, &unknown, false),
            ("10.4.7.22", ALICES_PUBLIC, Some(7), &lived, &unknown, false),
            ("10.4.7.22", ALICES_PUBLIC, Some(7), &node, &recorded, false),
        ] {
            let listing = [LeaseEvent::Reset, stored(address, of_it, token), LeaseEvent::Complete];
            assert_eq!(holder(&listing, key, node, record).is_some(), is_others, "{address} {of_it} {token:?}");
        }
    }

    #[test]
    fn key_is_made_once_for_its_owner_alone_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, flannels) = (folder.path().join("lib/netd/wgkey"), folder.path().join("run/wgkey"));
        let made = key_at(&path, Some(&flannels)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!((made.expose()[0] & 7, made.expose()[31] & 0xc0), (0, 0x40));
        assert_eq!(key_at(&path, Some(&flannels)).unwrap(), made);
        let other = key_at(&folder.path().join("other"), None).unwrap();
        assert_ne!(other, made);
    }

    #[test]
    fn key_of_flannel_goes_before_an_older_own_one_and_is_kept_when_flannels_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, flannels) = (folder.path().join("wgkey"), folder.path().join("flannels"));
        key_at(&path, Some(&flannels)).unwrap();
        fs::write(&flannels, ALICE).unwrap();
        assert_eq!(key_at(&path, Some(&flannels)).unwrap().expose_text(), ALICE);
        fs::remove_file(&flannels).unwrap();
        assert_eq!(key_at(&path, Some(&flannels)).unwrap().expose_text(), ALICE);
        fs::write(&flannels, "junk").unwrap();
        assert_eq!(key_at(&path, Some(&flannels)).unwrap().expose_text(), ALICE);
    }

    #[test]
    fn junk_is_named_and_neither_replaced_nor_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        fs::write(&path, "secret-but-broken").unwrap();
        let error = format!("{:#}", key_at(&path, None).unwrap_err());
        assert!(error.contains("wgkey holds no WireGuard key") && !error.contains("secret"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret-but-broken");
        fs::write(&path, "s".repeat((1 << 20) + 1)).unwrap();
        let error = format!("{:#}", key_at(&path, None).unwrap_err());
        assert!(error.contains("more than 1048576 bytes") && !error.contains("sss"), "{error}");
    }
}
