//! A container runtime's side of CNI: what containerd does through libcni before and after it runs a Pod.
//!
//! Invariant: plugins see exactly what libcni 1.3 gives them (environment, standard input with its key order, chain order,
//! `prevResult`, `runtimeConfig`) and are believed only as far as libcni believes them: exit status 0 means a result on
//! standard output, anything else an error object. Files are libcni's: `/etc/cni/net.d`, `/opt/cni/bin`, `/var/lib/cni/results`.

mod attachment;
mod cache;
mod network;
mod plugin;
mod runtime;
mod sandbox;

pub use attachment::Attachment;
pub use network::Network;
pub use plugin::PluginError;
pub use runtime::Runtime;
pub use sandbox::Sandbox;
