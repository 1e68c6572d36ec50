//! Certificates and keys of a cluster: three authorities, what each host needs of them, and the service accounts' key.
//!
//! Keys are ECDSA P-256 in PKCS #8 from the kernel's randomness; time is an argument. Invariants: what is kept is valid, of
//! its authority, with exactly the names and uses that are wanted; what an operator gave and is wrong is a [`Fault`], never
//! replaced; no key is in the text of any value or error here.

mod authority;
mod certificate;
mod der;
mod fault;
mod key;
mod pem;
mod reason;
mod request;
mod store;
#[cfg(test)]
mod tests;
mod time;
mod wanted;

pub(crate) use authority::Authority;
pub(crate) use certificate::Certificate;
pub(crate) use fault::{Fault, Flaw};
pub(crate) use key::{Key, Secret};
pub(crate) use pem::base64;
pub(crate) use reason::Reason;
pub(crate) use request::{Ca, Request, Usage};
pub(crate) use store::{Issued, Pair, Renewal, Store, authority_file, read, suffixed};
pub(crate) use time::Time;
pub(crate) use wanted::{wanted, wanted_by_operators};
