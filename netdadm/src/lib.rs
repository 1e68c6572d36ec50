//! Checks the topology of a cluster, one file of hosts, networks and versions, renders what its hosts get, applies it there, and
//! examines them.
//!
//! A file becomes a tree with positions ([`document`]), the tree a [`topology`], and [`check`] asks whether its values go
//! together. What is wrong with the form of a field and what is wrong with the whole are findings of one list. [`pki`] makes
//! the certificates that its hosts need, or keeps those that are there. [`render`] says what each host gets, [`output`] writes it,
//! and [`apply`] brings it to its host. [`facts`] are what a host is like, and [`preflight`] judges whether it is fit for its part;
//! [`status`] asks what runs on all of them, [`members`] asks and changes the members of etcd, [`backup`] has their
//! data, and [`nodes`] are drained.
//!
//! Invariants: everything but `command`, `pki`, `output`, `certs`, `apply`, `facts`, `status`, `members`, `backup` and
//! `nodes` is pure; every mistake is named at once,
//! with line and column.

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod apply;
mod backup;
mod certs;
mod check;
mod command;
mod document;
mod facts;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod kubeconfig;
mod members;
mod nodes;
mod output;
mod pki;
mod preflight;
mod render;
mod status;
mod topology;

pub use command::main;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS;
