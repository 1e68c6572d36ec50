//! `netd` leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`], [`config`] | what was typed, what is meant |
//! | [`network`], [`backend`], [`lease`], [`json`] | flannel's formats |
//! | [`interface`], [`allocate`] | choices: the interface, the subnet |
//! | [`view`] | what the store says about leases |
//! | [`plan`] | leases in, kernel tables out |
//! | [`store`] | acquire, keep and watch leases |
//! | [`run`] | the shell: starts, listens, plans, tells |
//!
//! Invariants of the crate: all but `store` and `run` are pure; a plan never imports `run`. The kernel is written by
//! one thread only. No program is executed. Ending leaves the data path as it is.

pub mod allocate;
pub mod args;
pub mod backend;
pub mod config;
pub mod interface;
pub mod json;
pub mod lease;
pub mod network;
pub mod plan;
pub mod problem;
pub mod run;
pub mod store;
pub mod view;
