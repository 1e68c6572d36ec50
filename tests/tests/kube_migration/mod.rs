//! From flannel to netd and back on a cluster, as the document of the migration says.
//!
//! Invariant: each step is the document's own command; what goes on meanwhile is counted from before the first to behind the last.

pub(crate) mod document;
pub(crate) mod flannel;
pub(crate) mod kube_proxy;
pub(crate) mod load;
pub(crate) mod shell;
pub(crate) mod web;
