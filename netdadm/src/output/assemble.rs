//! `Wanted`: every file of the folder, made of what is rendered and of the certificates of a [`Store`].
//!
//! Invariant: a key is in files of mode 0600 only, and on hosts only those that its components read: keys of authorities are
//! on none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use host::manifest::{Digest, FORMAT, FileOwner};
use host::{FileEntry, Manifest};
use serde::Serialize;

use crate::kubeconfig::{self, Credentials, Trust};
use crate::pki::{self, Ca, Fault, Request, Store};
use crate::render::{self, File, KUBERNETES, PKI, Place, Tree};
use crate::topology::{Host, Role, Topology};

/// Whose folder it is.
pub(super) const IDENTITY: &str = "netdadm.json";

/// All that the folder is to hold.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// What the cluster is called.
    pub(crate) cluster: String,
    /// SHA-256 of its CA.
    pub(crate) authority: Option<Digest>,
    /// Authorities, and the service accounts' key, that were not there and are made anew.
    pub(crate) made: Vec<String>,
    /// Every file by its path in the folder.
    pub(crate) files: BTreeMap<PathBuf, File>,
    /// The manifests of the hosts, in the order in which hosts are made.
    pub(crate) manifests: Vec<Manifest>,
}

/// Whose folder it is.
#[derive(Debug, Serialize)]
struct Identity<'a> {
    format: u32,
    cluster: &'a str,
    authority: &'a Digest,
}

/// Makes every file for `topology`; new certificates come from `store`.
///
/// # Errors
/// When an authority cannot sign.
pub(crate) fn assemble(topology: &Topology, store: &mut Store) -> Result<Wanted, Fault> {
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let authority = Digest::of(&store.authority(Ca::Cluster).certificate.der);
    let identity = Identity { format: FORMAT, cluster: &cluster, authority: &authority };
    // A number and two texts are always written.
    let identity = format!("{}\n", serde_json::to_string(&identity).unwrap_or_default());
    // Nothing else was asked of the store yet.
    let made = store.issued().iter().map(|issued| issued.path.clone()).collect();
    let mut wanted = Wanted { cluster: cluster.clone(), authority: Some(authority.clone()), made, ..Wanted::default() };
    wanted.files.insert(IDENTITY.into(), File::public(identity));
    for (name, text) in render::objects(topology) {
        wanted.files.insert(Path::new("manifests").join(name), File::public(text));
    }
    operators(topology, store, &mut wanted)?;
    for host in render::order(topology) {
        let mut tree = render::host(topology, host);
        certificates(topology, host, store, &mut tree)?;
        wanted.host(host, tree, &authority);
    }
    Ok(wanted)
}

impl Wanted {
    fn host(&mut self, host: &Host, tree: Tree, authority: &Digest) {
        let folder = Path::new("hosts").join(&host.name.value);
        let entry = |file: &File| FileEntry {
            mode: file.mode,
            owner: FileOwner::root(),
            sha256: Digest::of(file.text.as_bytes()),
        };
        let manifest = Manifest {
            format: FORMAT,
            cluster: self.cluster.clone(),
            authority: authority.clone(),
            host: host.name.value.clone(),
            files: tree.files.iter().map(|(path, file)| (path.clone(), entry(file))).collect(),
            units: tree.units,
        };
        self.files.insert(folder.join("manifest.json"), File::public(manifest.text()));
        for (path, file) in tree.files {
            self.files.insert(folder.join("root").join(path.strip_prefix("/").unwrap_or(&path)), file);
        }
        self.manifests.push(manifest);
    }

    /// What operators keep of a pair: its public half with its suffix, and its key.
    fn pair(&mut self, path: &str, (suffix, public): (&str, &str), key: &str) {
        let at = |suffix: &str| PathBuf::from(format!("pki/{path}.{suffix}"));
        self.files.insert(at(suffix), File::public(public));
        self.files.insert(at("key"), File::secret(key));
    }
}

/// What no host gets: keys of authorities that were made here, the administrators' kubeconfigs, and the
/// client with which members of etcd are asked.
fn operators(topology: &Topology, store: &mut Store, wanted: &mut Wanted) -> Result<(), Fault> {
    let given = topology.deviations.pki.as_ref().map(|folder| PathBuf::from(folder.value.to_string()));
    let elsewhere = |path: &str| given.as_ref().is_some_and(|folder| folder.join(format!("{path}.key")).exists());
    for ca in [Ca::Cluster, Ca::Etcd, Ca::FrontProxy].into_iter().filter(|ca| !elsewhere(ca.path())) {
        let authority = store.authority(ca);
        wanted.pair(ca.path(), ("crt", &authority.certificate_pem), authority.key.pem().expose());
    }
    if !elsewhere("sa") {
        let (key, public) = store.service_account();
        wanted.pair("sa", ("pub", public), key.expose());
    }
    let server = topology.server().map_or_else(String::new, |address| format!("https://{address}"));
    let authority = store.authority(Ca::Cluster).certificate_pem.clone();
    for request in pki::wanted_by_operators(topology) {
        let issued = store.issue(&request)?;
        wanted.pair(&request.path, ("crt", &issued.certificate_pem), issued.key_pem.expose());
        // Members of etcd read no kubeconfig.
        if request.authority != Ca::Cluster {
            continue;
        }
        let (user, trust) = (&request.common_name, Trust::Inline(&authority));
        let text = kubeconfig::render(&wanted.cluster, &server, trust, user, Credentials::Inline(issued));
        let path = Path::new("pki").join(format!("{}.conf", request.path));
        wanted.files.insert(path, File::secret(text.expose()));
    }
    Ok(())
}

/// The certificates of a host with those of who signed them, and the kubeconfigs that name them.
fn certificates(topology: &Topology, host: &Host, store: &mut Store, tree: &mut Tree) -> Result<(), Fault> {
    let at = |path: &str, suffix: &str| PathBuf::from(format!("{PKI}/{path}.{suffix}"));
    let requests: Vec<Request> = pki::wanted(topology, host);
    let mut authorities = BTreeSet::new();
    for request in &requests {
        let pair = store.issue(request)?;
        tree.files.insert(at(&request.path, "crt"), File::public(&pair.certificate_pem));
        tree.files.insert(at(&request.path, "key"), File::secret(pair.key_pem.expose()));
        authorities.insert(request.authority);
    }
    for ca in authorities {
        tree.files.insert(at(ca.path(), "crt"), File::public(&store.authority(ca).certificate_pem));
    }
    if host.has(Role::ControlPlane) {
        let (key, public) = store.service_account();
        tree.files.insert(at("sa", "key"), File::secret(key.expose()));
        tree.files.insert(at("sa", "pub"), File::public(public));
    }
    let cluster = topology.cluster.as_ref().map_or_else(String::new, |cluster| cluster.value.to_string());
    let authority = at(Ca::Cluster.path(), "crt");
    for found in Place::of(topology, host).map(|place| place.kubeconfigs()).unwrap_or_default() {
        let (certificate, key) = (at(found.certificate, "crt"), at(found.certificate, "key"));
        let (trust, own) = (Trust::File(&authority), Credentials::Files(&certificate, &key));
        let text = kubeconfig::render(&cluster, &found.server, trust, &found.user, own);
        tree.files.insert(format!("{KUBERNETES}/{}", found.file).into(), File::secret(text.expose()));
    }
    Ok(())
}
