//! A container runtime's side of CNI: what containerd, CRI-O and cnitool do through libcni before and after they run a Pod.
//!
//! Invariant: plugins see exactly what libcni 1.1.2 or 1.3 gives them (environment, standard input with its key order, chain
//! order, `prevResult`, `runtimeConfig`) and are believed only as far as libcni believes them: exit status 0 means a result on
//! standard output, anything else an error object. `cni_containerd` compares this with the real thing. Files are libcni's:
//! `/etc/cni/net.d`, `/opt/cni/bin`, `/var/lib/cni/results`.

mod attachment;
mod cache;
mod client;
mod conf_dir;
mod network;
mod plugin;
mod result;
mod runtime;
mod sandbox;

pub use attachment::Attachment;
pub use client::Client;
pub use network::Network;
pub use plugin::PluginError;
pub use runtime::Runtime;
pub use sandbox::Sandbox;
