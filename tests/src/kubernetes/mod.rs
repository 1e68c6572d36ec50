//! Real Kubernetes in machines of the lab: an API server over its own etcd, faults in front of it, and a kube-proxy.
//!
//! Invariant: the programs are built from Debian's sources by `tests/kubernetes/build` (or lie in the folder `KUBE_BIN`), or are not
//! there; nothing stands in for them.

mod api_server;
mod authority;
mod client;
mod control;
mod etcd;
mod faults;
mod http;
mod kube_proxy;
mod kubeconfig;
mod kubelet;
mod launch;
mod objects;
mod relay;
mod rights;
mod shared;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Absent;
pub use api_server::ApiServer;
pub use client::{Answer, Client, Watch};
pub use control::ControlPlane;
pub use faults::{Fault, Faults, Seen};
pub use kube_proxy::KubeProxy;
pub use kubeconfig::Kubeconfig;
pub use kubelet::Kubelet;
pub use shared::Shared;

/// Which Kubernetes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Release {
    /// 1.20.2 as it was, with RBAC and service accounts; `discovery.k8s.io/v1beta1` alone. `KUBE_BIN` puts another in its place.
    #[default]
    V1_20,
    /// A small server over the library of a current Kubernetes: `discovery.k8s.io/v1`, streaming lists; everybody may do everything.
    Modern,
}

/// The folder of kubectl and helm.
///
/// # Errors
/// When they are not there.
pub fn tools() -> Result<PathBuf, Absent> {
    folder_of("tools", &["--path"])
}

/// What a script of `tests/kubernetes` says of where its programs are.
fn folder_of(script: &str, arguments: &[&str]) -> Result<PathBuf, Absent> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(script);
    let asked = Command::new(path).args(arguments).output();
    let asked = asked.map_err(|error| Absent::Missing(format!("run tests/kubernetes/{script}: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match asked.status.code() {
        Some(0) => Ok(text(&asked.stdout).into()),
        Some(3) => Err(Absent::CannotBeHad(text(&asked.stderr))),
        _ => Err(Absent::Missing(text(&asked.stderr))),
    }
}

impl Release {
    /// The folder of its programs.
    ///
    /// # Errors
    /// When there is none.
    pub fn programs(self) -> Result<PathBuf, Absent> {
        folder_of("build", &[self.name(), "--path"])
    }

    /// The version of EndpointSlices that it serves, as an object names it.
    #[must_use]
    pub const fn slices(self) -> &'static str {
        match self {
            Self::V1_20 => "discovery.k8s.io/v1beta1",
            Self::Modern => "discovery.k8s.io/v1",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V1_20 => "1.20",
            Self::Modern => "modern",
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubernetes {}", self.name())
    }
}
