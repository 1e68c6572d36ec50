//! The names that make an interface: `netd-cni`, `flannel` and `bridge`.

pub mod add;
pub mod check;
pub mod del;
pub mod gc;
pub mod mtu;
pub mod network;
pub mod status;
mod survey;
