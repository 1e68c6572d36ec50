//! Leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
pub mod allocate;
pub mod args;
pub mod config;
pub mod interface;
pub mod json;
pub mod lease;
pub mod network;
pub mod plan;
pub mod problem;
pub mod view;
