//! flannel's formats, read as flannel reads them and written to the byte as it writes them, and what netd says of itself.
//!
//! Invariant: text in, values out; a value that cannot be read is a problem with its field, never a panic.

pub(crate) mod backend;
pub(crate) mod edit;
pub(crate) mod go_json;
pub(crate) mod lease;
pub(crate) mod net_conf;
pub(crate) mod node;
pub(crate) mod status;
