//! Which addresses of a network are taken, in host-local's file layout under host-local's lock: a node changes over, and
//! back, with Pods running.

pub mod locked;
pub mod pool;
#[cfg(test)]
mod reference;
pub mod store;

pub use locked::Locked;
pub use pool::Sharing;
pub use store::{Store, StoreError};
