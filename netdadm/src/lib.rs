//! Checks the topology of a cluster: one file of hosts, networks and versions.
//!
//! A file becomes a tree with positions ([`document`]), the tree a [`topology`], and [`check`] asks whether its values go
//! together. What is wrong with the form of a field and what is wrong with the whole are findings of one list. [`pki`] makes
//! the certificates that its hosts need, or keeps those that are there.
//!
//! Invariants: everything but `command` and `pki` is pure; every mistake is named at once, with line and column.

mod check;
mod command;
mod document;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
#[allow(dead_code, reason = "`render` asks for what it says")]
mod kubeconfig;
#[allow(dead_code, unused_imports, reason = "`render` asks for it")]
mod pki;
mod topology;

pub use command::main;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
