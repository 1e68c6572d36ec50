//! The command line: what was typed ([`args`]) and what it means ([`config`]).

pub mod args;
pub mod config;
mod duration;
