//! flannel's formats, read as flannel reads them and written to the byte as it writes them.
//!
//! Invariant: text in, values out; a value that cannot be read is a problem with its field, never a panic.

pub mod backend;
pub mod go_json;
pub mod lease;
pub mod net_conf;
