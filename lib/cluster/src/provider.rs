//! The one provider of cryptography, for everything in the process that speaks TLS.
//!
//! Invariant: `ring`, installed before the first use, so that a second provider brought in by another dependency cannot make the choice
//! ambiguous at run time.

use rustls::crypto::ring;

/// A provider that is installed already stays: the program chose it.
pub(crate) fn install() {
    let _already_chosen = ring::default_provider().install_default();
}
