//! Who calls plugins through libcni, and what is peculiar about each caller.
//!
//! Invariant: a client decides about values (which release of libcni, which spelling, which order of the arguments, which verbs
//! around ADD); how a verb goes through a chain is libcni's alone and the same for all.

use std::cmp::Ordering;

/// Newest version of the specification before GC and STATUS.
const BEFORE_GC: &str = "1.0.0";
/// Newest version there is.
const NEWEST: &str = "1.1.0";

/// A program that calls plugins through libcni.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// The reference's own tool on the newest libcni: a chain and nothing around it.
    Cnitool,
    /// containerd 1.6 and 1.7 (go-cni 1.1.6): `loopback` beside every network, port mappings without JSON names.
    Containerd1,
    /// containerd from 2.0.1 (go-cni 1.1.11): the same on a libcni with STATUS, which kubelet makes it ask every 5 s.
    Containerd2,
    /// podman 4 with its CNI back end: port mappings with the conventional names.
    Podman4,
    /// CRI-O from 1.31 (ocicni): VERSION of every plugin before a network is taken, CHECK after every ADD, DEL with the
    /// configuration that ADD had. It publishes ports itself.
    CriO,
}

/// What differs between releases of libcni.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// 1.1.2: specification 1.0.0, `cniVersions` is unknown, an unreadable cached result fails DEL, no namespace in the cache.
    V1_1,
    /// 1.3: specification 1.1.0.
    V1_3,
}

impl Client {
    /// The release it is built with.
    pub(crate) fn release(self) -> Release {
        match self {
            Self::Containerd1 | Self::Podman4 => Release::V1_1,
            Self::Cnitool | Self::Containerd2 | Self::CriO => Release::V1_3,
        }
    }

    pub(crate) fn is_containerd(self) -> bool {
        matches!(self, Self::Containerd1 | Self::Containerd2)
    }
}

impl Release {
    /// Newest version of the specification it speaks; results of a newer one are refused.
    pub(crate) fn newest(self) -> &'static str {
        match self {
            Self::V1_1 => BEFORE_GC,
            Self::V1_3 => NEWEST,
        }
    }
}

/// Compares two versions of the specification by age. A part that is no number counts as 0.
pub(crate) fn by_age(one: &str, other: &str) -> Ordering {
    let parts = |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    parts(one).cmp(&parts(other))
}
