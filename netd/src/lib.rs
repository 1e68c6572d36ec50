//! `netd` leases this node's Pod subnet and keeps the kernel's inter-node network equal to the leases.
//!
//! | module | what it is |
//! |---|---|
//! | [`command`] | what was typed, what is meant |
//! | [`mod@format`] | flannel's formats |
//! | [`choose`] | choices: the interface, the subnet |
//! | [`plan`] | leases in, kernel tables out |
//! | [`source`] | where leases come from: acquire, keep and watch them |
//! | [`run`] | the shell: starts, listens, plans, reports |
//!
//! Invariants of the crate: all but `source` and `run` are pure; a plan never imports `run`. The kernel is written by
//! one thread only. No program is executed. Ending leaves the data path as it is.

mod choose;
mod command;
mod format;
mod plan;
mod run;
mod source;

pub use run::main;
