//! What the tests of `ipvs-proxy` on a real API server are about beside its Services.

pub(crate) mod access;
pub(crate) mod events;
pub(crate) mod node;
pub(crate) mod rights;
pub(crate) mod service_cidr;
pub(crate) mod silence;
pub(crate) mod store;
pub(crate) mod versions;
