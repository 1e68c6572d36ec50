//! Checks the topology of a cluster: one file of hosts, networks and versions.
//!
//! A file becomes a tree with positions ([`document`]), the tree a [`topology`], and [`check`] asks whether its values go
//! together. What is wrong with the form of a field and what is wrong with the whole are findings of one list.
//!
//! Invariants: everything but `command` is pure; every mistake is named at once, with line and column.

mod check;
mod command;
mod document;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod topology;

pub use command::main;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
