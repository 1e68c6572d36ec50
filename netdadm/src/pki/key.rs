//! `Key`: a private key that signs, with the text of its file; `Secret`: a text that no message has.
//!
//! Invariant: the text of a key leaves by [`Secret::expose`] alone; a key that was read keeps the form of its file.

use std::fmt;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};

use super::{Flaw, der, pem};

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// A secret.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for a file of mode 0600.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A private key.
#[derive(Debug)]
pub(crate) struct Key {
    pair: KeyPair,
    pem: Secret,
}

impl Key {
    /// A new one, ECDSA P-256.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub(crate) fn generate() -> Result<Self, Flaw> {
        let pair = KeyPair::generate().map_err(|_| Flaw::Randomness)?;
        let pem = Secret::new(pair.serialize_pem());
        Ok(Self { pair, pem })
    }

    /// The one key of a file, in any form that openssl and kubeadm write.
    ///
    /// # Errors
    /// When there is none, it is encrypted, or of a kind that ring does not take.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Flaw> {
        let blocks = pem::parse(bytes)?;
        let parameters = blocks.iter().find(|block| block.label == "EC PARAMETERS").map(|block| block.der.as_slice());
        let mut keys = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY"));
        let block = keys.next().ok_or(Flaw::NoBlock("PRIVATE KEY"))?;
        match keys.count() {
            0 => {}
            others => return Err(Flaw::Bundle(others + 1, "PRIVATE KEY")),
        }
        if block.encrypted || block.label == "ENCRYPTED PRIVATE KEY" {
            return Err(Flaw::Encrypted);
        }
        let pkcs8 = match block.label.as_str() {
            "PRIVATE KEY" => Some(block.der.clone()),
            "RSA PRIVATE KEY" => Some(der::around_rsa(&block.der)),
            "EC PRIVATE KEY" => der::around_ec(&block.der, parameters),
            _ => None,
        };
        let pair = pkcs8.and_then(|pkcs8| KeyPair::try_from(pkcs8).ok()).ok_or(Flaw::NoKey)?;
        let pem = Secret::new(String::from_utf8_lossy(bytes).into_owned());
        Ok(Self { pair, pem })
    }

    /// What signs.
    pub(super) const fn pair(&self) -> &KeyPair {
        &self.pair
    }

    /// The text of its file.
    pub(crate) const fn pem(&self) -> &Secret {
        &self.pem
    }

    /// Its public half as certificates have it, in DER.
    pub(crate) fn public_der(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// Its public half, the text of a file.
    pub(crate) fn public_pem(&self) -> String {
        self.pair.public_key_pem()
    }

    /// Whether tokens of service accounts can be signed with it.
    pub(super) fn signs_tokens(&self) -> bool {
        *self.pair.algorithm() != PKCS_ED25519
    }
}
