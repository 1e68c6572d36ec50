//! Leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
pub mod allocate;
mod json;
pub mod lease;
pub mod network;
pub mod problem;
