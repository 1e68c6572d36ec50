//! Checks the topology of a cluster, one file of hosts, networks and versions, renders what its hosts get, and applies it there.
//!
//! A file becomes a tree with positions ([`document`]), the tree a [`topology`], and [`check`] asks whether its values go
//! together. What is wrong with the form of a field and what is wrong with the whole are findings of one list. [`pki`] makes
//! the certificates that its hosts need, or keeps those that are there. [`render`] says what each host gets, [`output`] writes it,
//! and [`apply`] brings it to its host.
//!
//! Invariants: everything but `command`, `pki`, `output`, `certs` and `apply` is pure; every mistake is named at once, with line and column.

mod apply;
mod certs;
mod check;
mod command;
mod document;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod kubeconfig;
mod output;
mod pki;
mod render;
mod topology;

pub use command::main;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
