//! The command line: what was typed ([`args`], [`verbs`]) and how Go's programs write it ([`go`]), what it means ([`config`])
//! and which network of the host is meant ([`instance`]).
//!
//! Invariant: neither reads the clock, a file or the network; wrong input is refused whole, every problem at once.

pub(crate) mod args;
pub(crate) mod config;
pub(crate) mod go;
pub(crate) mod instance;
pub(crate) mod page;
pub(crate) mod verbs;
