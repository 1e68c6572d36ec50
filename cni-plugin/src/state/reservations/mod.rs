//! Which addresses of a network are taken, in host-local's file layout under host-local's lock: a node changes over, and
//! back, with Pods running.

pub(crate) mod locked;
pub(crate) mod pool;
#[cfg(test)]
mod reference;
pub(crate) mod store;

pub(crate) use locked::Locked;
pub(crate) use pool::Pools;
pub use pool::Sharing;
pub use store::Store;
pub(crate) use store::StoreError;
