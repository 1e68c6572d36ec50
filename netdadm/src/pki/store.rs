//! `Store`: the authorities of a cluster, the service accounts' key, and every pair that was asked for.
//!
//! A pair lies where `render` writes it: `hosts/NAME/root/etc/kubernetes/pki/PATH.{crt,key}` below the folder, or
//! `pki/PATH.{crt,key}` for what no host gets. Invariants: nothing is written here; what is there and good is given back
//! byte for byte, so that rendering twice changes nothing; everything that is made anew is in [`Store::issued`] with its
//! reason.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::reason::{self, Files};
use super::{Authority, Ca, Fault, Flaw, Key, Reason, Request, Secret, Time};

/// The folder of certificates on a host, kubeadm's.
pub(crate) const FOLDER: &str = "/etc/kubernetes/pki";

/// A certificate and its key, the texts of their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) certificate_pem: String,
    /// Its key, for a file of mode 0600.
    pub(crate) key_pem: Secret,
}

/// Where the certificate of a CA lies: below the rendered folder `out`, or, if the CA was there before, in the folder of CAs that the
/// topology names.
pub(crate) fn authority_file(ca: Ca, out: &Path, given: Option<&Path>) -> PathBuf {
    let name = format!("{}.crt", ca.path());
    let own = out.join("pki").join(&name);
    given.filter(|_| !own.exists()).map_or(own, |folder| folder.join(name))
}

/// What was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    /// The host that gets it; none for what operators keep.
    pub(crate) host: Option<String>,
    /// Its files, without suffix.
    pub(crate) path: String,
    /// Why.
    pub(crate) reason: Reason,
}

/// Which good pairs are made anew as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// None.
    Due,
    /// Those of these paths, `etcd/server`, or `hdss7-21: etcd/server` for one host's.
    Only(Vec<String>),
    /// All.
    All,
}

impl Renewal {
    fn asks(&self, request: &Request) -> bool {
        match self {
            Self::Due => false,
            Self::Only(names) => names.iter().any(|name| *name == request.path || *name == request.label()),
            Self::All => true,
        }
    }
}

/// The certificates and keys of one cluster.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Option<PathBuf>,
    now: Time,
    renewal: Renewal,
    authorities: Authorities,
    service_account: Key,
    service_account_pub: String,
    pairs: BTreeMap<(Option<String>, String), Pair>,
    issued: Vec<Issued>,
}

impl Store {
    /// What lies in `folder`, which `render` wrote before; of authorities that are not there those of `given`, a folder as
    /// kubeadm's `/etc/kubernetes/pki`; else new ones.
    ///
    /// # Errors
    /// When an authority or the service accounts' key is there and cannot be used, or `given` has no authority.
    pub(crate) fn open(folder: Option<&Path>, given: Option<&Path>, now: Time) -> Result<Self, Fault> {
        let has = |folder: &Path, ca: Ca| folder.join(format!("{}.crt", ca.path())).exists();
        let lacks_all = |folder: &&Path| ![Ca::Cluster, Ca::Etcd, Ca::FrontProxy].iter().any(|ca| has(folder, *ca));
        if let Some(folder) = given.filter(lacks_all) {
            return Err(Fault::new(folder.display().to_string(), Flaw::NoAuthorities));
        }
        let own = folder.map(|folder| folder.join("pki"));
        let places = [own.as_deref(), given];
        let mut issued = Vec::new();
        let made = |path: &str| Issued { host: None, path: path.to_owned(), reason: Reason::Missing };
        let mut of = |ca: Ca| match same(authority(places[0], ca, now)?, authority(places[1], ca, now)?, ca, places)? {
            Some(authority) => Ok(authority),
            None => {
                issued.push(made(ca.path()));
                Authority::create(ca, now).map_err(|flaw| Fault::new(ca.path(), flaw))
            }
        };
        let authorities =
            Authorities { cluster: of(Ca::Cluster)?, etcd: of(Ca::Etcd)?, front_proxy: of(Ca::FrontProxy)? };
        authorities.differ(given.or(own.as_deref()))?;
        let found = service_account(places[0])?;
        let found = if found.is_some() { found } else { service_account(places[1])? };
        let (service_account, service_account_pub) = match found {
            Some(found) => found,
            None => {
                issued.push(made("sa"));
                let key = Key::generate().map_err(|flaw| Fault::new("sa.key", flaw))?;
                let public = key.public_pem();
                (key, public)
            }
        };
        let (folder, renewal, pairs) = (folder.map(Path::to_path_buf), Renewal::Due, BTreeMap::new());
        Ok(Self { folder, now, renewal, authorities, service_account, service_account_pub, pairs, issued })
    }

    /// The same, which makes anew what `renewal` says although it is good.
    pub(crate) fn renewing(self, renewal: Renewal) -> Self {
        Self { renewal, ..self }
    }

    /// The pair that `request` asks for: the one that is there if it is good, else a new one.
    ///
    /// # Errors
    /// When the authority cannot sign it.
    pub(crate) fn issue(&mut self, request: &Request) -> Result<&Pair, Fault> {
        let slot = (request.host.clone(), request.path.clone());
        let pair = match self.pairs.remove(&slot) {
            Some(pair) => pair,
            None => self.find_or_sign(request)?,
        };
        Ok(self.pairs.entry(slot).or_insert(pair))
    }

    fn find_or_sign(&mut self, request: &Request) -> Result<Pair, Fault> {
        let authority = self.authorities.of(request.authority);
        let found = match self.place(request) {
            Some(place) if !self.renewal.asks(request) => {
                reason::kept(&read_pair(&place), request, &authority.certificate, self.now)
            }
            Some(place) if suffixed(&place, "crt").exists() => Err(Reason::Asked),
            _ => Err(Reason::Missing),
        };
        match found {
            Ok(pair) => Ok(pair),
            Err(reason) => {
                let pair = authority.sign(request, self.now).map_err(|flaw| Fault::new(request.label(), flaw))?;
                self.issued.push(Issued { host: request.host.clone(), path: request.path.clone(), reason });
                Ok(pair)
            }
        }
    }

    /// Where the pair of `request` lies, without suffix.
    fn place(&self, request: &Request) -> Option<PathBuf> {
        Some(place(self.folder.as_deref()?, request))
    }

    /// The authority of the kind `ca`.
    pub(crate) const fn authority(&self, ca: Ca) -> &Authority {
        self.authorities.of(ca)
    }

    /// The private half of the service accounts' key, and the public ones that are believed.
    pub(crate) fn service_account(&self) -> (&Secret, &str) {
        (self.service_account.pem(), &self.service_account_pub)
    }

    /// What was made anew, with its reason.
    pub(crate) fn issued(&self) -> &[Issued] {
        &self.issued
    }
}

/// Where the pair of `request` lies below `folder`, without suffix.
pub(crate) fn place(folder: &Path, request: &Request) -> PathBuf {
    match &request.host {
        Some(host) => folder.join("hosts").join(host).join("root").join(FOLDER.trim_start_matches('/')),
        None => folder.join("pki"),
    }
    .join(&request.path)
}

/// The authority `ca` of a folder, if it has it.
fn authority(folder: Option<&Path>, ca: Ca, now: Time) -> Result<Option<Authority>, Fault> {
    let Some(folder) = folder else { return Ok(None) };
    let name = |suffix: &str| folder.join(format!("{}.{suffix}", ca.path()));
    let Some([certificate, key]) = halves(&name("crt"), &name("key"))? else { return Ok(None) };
    let (file, key_file) = (name("crt").display().to_string(), name("key").display().to_string());
    let key = Key::read(&key).map_err(|flaw| Fault::new(&key_file, flaw))?;
    Authority::read(&certificate, key, &key_file, now).map(Some).map_err(|flaw| Fault::new(file, flaw))
}

/// The authority of the folder that was written, which is the one that was given if there are both.
fn same(
    own: Option<Authority>,
    given: Option<Authority>,
    ca: Ca,
    places: [Option<&Path>; 2],
) -> Result<Option<Authority>, Fault> {
    let file =
        |place: Option<&Path>| place.unwrap_or(Path::new("")).join(format!("{}.crt", ca.path())).display().to_string();
    match (own, given) {
        (Some(own), Some(given)) if own.certificate.public_key != given.certificate.public_key => {
            Err(Fault::new(file(places[0]), Flaw::Another(file(places[1]))))
        }
        // The same key with another certificate: the operator has renewed the CA.
        (_, Some(given)) => Ok(Some(given)),
        (own, None) => Ok(own),
    }
}

/// The three authorities.
#[derive(Debug)]
struct Authorities {
    cluster: Authority,
    etcd: Authority,
    front_proxy: Authority,
}

impl Authorities {
    const fn of(&self, ca: Ca) -> &Authority {
        match ca {
            Ca::Cluster => &self.cluster,
            Ca::Etcd => &self.etcd,
            Ca::FrontProxy => &self.front_proxy,
        }
    }

    /// Refuses one authority for two purposes; `folder` names it in the message.
    fn differ(&self, folder: Option<&Path>) -> Result<(), Fault> {
        for (one, other) in [(Ca::Cluster, Ca::Etcd), (Ca::Cluster, Ca::FrontProxy), (Ca::Etcd, Ca::FrontProxy)] {
            if self.of(one).certificate.public_key == self.of(other).certificate.public_key {
                let file = folder.unwrap_or(Path::new("")).join(format!("{}.crt", other.path()));
                return Err(Fault::new(file.display().to_string(), Flaw::Shared(one, other)));
            }
        }
        Ok(())
    }
}

/// The service accounts' key of a folder, if it has it.
fn service_account(folder: Option<&Path>) -> Result<Option<(Key, String)>, Fault> {
    let Some(folder) = folder else { return Ok(None) };
    let (key_file, public_file) = (folder.join("sa.key"), folder.join("sa.pub"));
    let fault = |flaw: Flaw| Fault::new(key_file.display().to_string(), flaw);
    let Some(key) = read(&key_file)? else { return Ok(None) };
    let key = Key::read(&key).map_err(fault)?;
    if !key.signs_tokens() {
        return Err(fault(Flaw::NoTokenKey));
    }
    let Some(public) = read(&public_file)? else {
        let public = key.public_pem();
        return Ok(Some((key, public)));
    };
    let file = public_file.display().to_string();
    // Several are what a change of the key goes through: tokens of the old one are believed as well.
    let blocks = super::pem::parse(&public).map_err(|flaw| Fault::new(&file, flaw))?;
    if !blocks.iter().any(|block| block.der == key.public_der()) {
        return Err(Fault::new(file, Flaw::KeyDoesNotFit(key_file.display().to_string())));
    }
    Ok(Some((key, String::from_utf8_lossy(&public).into_owned())))
}

/// Both files of an authority, or none.
fn halves(certificate: &Path, key: &Path) -> Result<Option<[Vec<u8>; 2]>, Fault> {
    let half = |there: &Path, other: &Path| {
        Err(Fault::new(there.display().to_string(), Flaw::Half(other.display().to_string())))
    };
    match (read(certificate)?, read(key)?) {
        (Some(certificate), Some(key)) => Ok(Some([certificate, key])),
        (None, None) => Ok(None),
        (Some(_), None) => half(certificate, key),
        (None, Some(_)) => half(key, certificate),
    }
}

/// The files of a pair; one that cannot be read is as good as none, for another takes its place.
fn read_pair(place: &Path) -> Files {
    let file = |suffix: &str| read(&suffixed(place, suffix)).ok().flatten();
    (file("crt"), file("key"))
}

/// `place` with `.suffix` behind it; a dot in a name is no suffix.
pub(crate) fn suffixed(place: &Path, suffix: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    PathBuf::from(name)
}

/// The bytes of a file, if it is there.
pub(crate) fn read(file: &Path) -> Result<Option<Vec<u8>>, Fault> {
    let fault = |flaw: Flaw| Fault::new(file.display().to_string(), flaw);
    match bounded::read(file, bounded::SETTINGS) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) if cause.kind() == ErrorKind::FileTooLarge => Err(fault(Flaw::TooLarge(bounded::SETTINGS))),
        Err(cause) => Err(fault(Flaw::Unreadable(cause.to_string()))),
    }
}
