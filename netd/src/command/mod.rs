//! The command line: what was typed ([`args`]) and what it means ([`config`]).
//!
//! Invariant: neither reads the clock, a file or the network; wrong input is refused whole, every problem at once.

pub mod args;
pub mod config;
