//! The CNI plugin: one exec per Pod, veth into cbr0 with IPAM and host ports inside.

pub mod args;
pub mod attachment;
pub mod error;
pub mod fields;
pub mod ipam;
pub mod netconf;
pub mod result;
pub mod version;
