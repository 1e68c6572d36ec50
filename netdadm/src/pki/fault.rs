//! `Fault`: what is wrong with one file of certificates or keys, in words for an operator.
//!
//! Pure. Invariant: a message names the file, what was found and what to do; never a byte of a key.

use super::{Ca, Time};

/// What is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {flaw}")]
pub(crate) struct Fault {
    /// The file.
    pub(crate) file: String,
    /// What is wrong with it.
    pub(crate) flaw: Flaw,
}

impl Fault {
    /// `flaw` of `file`.
    pub(crate) fn new(file: impl Into<String>, flaw: Flaw) -> Self {
        Self { file: file.into(), flaw }
    }
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    /// The system does not give it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It is larger than any certificate.
    #[error("it has more than {0} bytes; put one certificate or key in PEM there")]
    TooLarge(u64),
    /// It is no PEM.
    #[error("it has no PEM block `{0}`; put one there (openssl x509 -in FILE -inform der turns DER into PEM)")]
    NoBlock(&'static str),
    /// A block of it is damaged.
    #[error("line {0} is no PEM; copy the file anew")]
    NoPem(usize),
    /// A key that a passphrase protects.
    #[error(
        "the key is encrypted, and no daemon can ask for a passphrase; decrypt it with: openssl pkey -in FILE -out FILE.new"
    )]
    Encrypted,
    /// Several in one file.
    #[error("it has {0} blocks `{1}`, a bundle; put the one that is used now there alone")]
    Bundle(usize, &'static str),
    /// A certificate that is none.
    #[error("it is no X.509 certificate: {0}; copy the file anew")]
    NoCertificate(String),
    /// A key that is none, or none that can be used.
    #[error("it is no key that can be used; accepted: RSA from 2048 bits, ECDSA P-256 or P-384, with its public half")]
    NoKey,
    /// A key for tokens that Kubernetes does not take.
    #[error("an Ed25519 key signs no tokens of service accounts; accepted: RSA or ECDSA")]
    NoTokenKey,
    /// Its life has not begun.
    #[error("it is not valid before {from}, and now it is {now}; set the clock of this machine right, or wait")]
    NotYetValid {
        /// When it begins.
        from: Time,
        /// When it was asked.
        now: Time,
    },
    /// Its life has ended.
    #[error(
        "it ended at {end}, and now it is {now}; put a CA there that is valid, or move it away and all is issued anew"
    )]
    Ended {
        /// When it ended.
        end: Time,
        /// When it was asked.
        now: Time,
    },
    /// It may not sign.
    #[error("it is no CA: {0}; put a certificate with CA:TRUE and keyCertSign there")]
    NoAuthority(&'static str),
    /// Certificate and key are of different pairs.
    #[error("its key {0} does not fit; put the key there that this certificate was made with")]
    KeyDoesNotFit(String),
    /// The half of a pair.
    #[error("{0} is missing beside it; put it there, or move this file away and both are made anew")]
    Half(String),
    /// A folder that was given for its authorities and has none.
    #[error(
        "it has none of ca.crt, etcd/ca.crt and front-proxy-ca.crt; name the folder of CAs that are there, or leave the field pki out"
    )]
    NoAuthorities,
    /// One authority for two purposes.
    #[error("it is {0} and {1} in one; give two: holders of certificates of the one would be believed by the other")]
    Shared(Ca, Ca),
    /// The folder that is written belongs to another authority than the one that was given.
    #[error("it is not the CA that was given as {0}; render into an empty folder, or give the one that made this")]
    Another(String),
    /// rcgen does not sign it.
    #[error("the CA signs nothing: {0}; give a CA with an RSA or ECDSA key")]
    Unsigned(String),
    /// What it signs is not believed.
    #[error("what this CA signs is not believed: {0}; give a CA with a plain subject such as CN=kubernetes")]
    NotBelieved(&'static str),
    /// A name that no certificate carries.
    #[error("no certificate carries the name {0:?}; accepted: names of the DNS")]
    Name(String),
    /// The kernel gives no randomness.
    #[error("the kernel gives no randomness: a key cannot be made")]
    Randomness,
}
