//! `Request`: one certificate that is wanted.
//!
//! Pure. Invariant: a request has at most one organization: rcgen keeps only the last of several, and several in one subject
//! would be as many groups of Kubernetes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// An authority of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ca {
    /// Whom the API server believes who somebody is, and everybody the API server.
    Cluster,
    /// Whom members of etcd and their clients believe; another one, or every kubelet could write into etcd.
    Etcd,
    /// Whom aggregated API servers believe that a request came from ours; another one, or any certificate would do.
    FrontProxy,
}

impl Ca {
    /// Its files as kubeadm names them, without suffix.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::Etcd => "etcd/ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }

    /// What a new one is called.
    pub(crate) const fn common_name(self) -> &'static str {
        match self {
            Self::Cluster => "kubernetes",
            Self::Etcd => "etcd-ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
}

impl fmt::Display for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "the cluster's CA",
            Self::Etcd => "etcd's CA",
            Self::FrontProxy => "the front proxy's CA",
        })
    }
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Usage {
    /// Its holder connects.
    Client,
    /// Its holder is connected to.
    Server,
    /// etcd's: its gateway connects to its own listener.
    Both,
}

impl Usage {
    /// True when its holder may be connected to.
    pub(crate) const fn serves(self) -> bool {
        matches!(self, Self::Server | Self::Both)
    }

    /// True when its holder may connect.
    pub(crate) const fn connects(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "server and client",
        })
    }
}

/// One certificate that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The host that gets it; none for what operators keep.
    pub(crate) host: Option<String>,
    /// Its files below `/etc/kubernetes/pki`, as kubeadm names them, without suffix.
    pub(crate) path: String,
    /// Who signs it.
    pub(crate) authority: Ca,
    /// Whom it names: for Kubernetes the user.
    pub(crate) common_name: String,
    /// For Kubernetes the group.
    pub(crate) organization: Option<String>,
    /// Names of the DNS under which its holder is connected to.
    pub(crate) names: BTreeSet<String>,
    /// Addresses at which its holder is connected to.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What it is for.
    pub(crate) usage: Usage,
}

impl Request {
    /// A certificate with which `common_name` connects.
    pub(crate) fn client(host: &str, path: &str, authority: Ca, common_name: impl Into<String>) -> Self {
        Self {
            host: Some(host.to_owned()),
            path: path.to_owned(),
            authority,
            common_name: common_name.into(),
            organization: None,
            names: BTreeSet::new(),
            addresses: BTreeSet::new(),
            usage: Usage::Client,
        }
    }

    /// The same in the group `organization`.
    pub(crate) fn of(self, organization: Option<&str>) -> Self {
        Self { organization: organization.map(str::to_owned), ..self }
    }

    /// The same for `usage` under `names`, of which those that are addresses are such.
    pub(crate) fn serving(self, usage: Usage, names: impl IntoIterator<Item = String>) -> Self {
        let mut request = Self { usage, ..self };
        for name in names {
            match name.parse() {
                Ok(address) => drop(request.addresses.insert(address)),
                Err(_) => drop(request.names.insert(name)),
            }
        }
        request
    }

    /// What it is called in a message: the host and the files.
    pub(crate) fn label(&self) -> String {
        match &self.host {
            Some(host) => format!("{host}: {}", self.path),
            None => self.path.clone(),
        }
    }
}
