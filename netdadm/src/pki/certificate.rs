//! `Certificate`: what a certificate says, as far as this program asks it.
//!
//! Invariant: every value is one that Go reads from the same bytes; what is not asked for is not judged.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::parse_x509_certificate;
use x509_parser::prelude::AttributeTypeAndValue;

use super::{Flaw, Key, Time, Usage, pem};

/// A certificate.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// All of it, in DER.
    pub(crate) der: Vec<u8>,
    /// Whom it names, in DER.
    pub(crate) subject: Vec<u8>,
    /// Who signed it, in DER.
    pub(crate) issuer: Vec<u8>,
    /// Whom it names.
    pub(crate) common_name: String,
    /// The name of who signed it.
    pub(crate) issuer_name: String,
    /// The groups of whom it names.
    pub(crate) organizations: Vec<String>,
    /// Names of the DNS under which its holder is connected to.
    pub(crate) names: BTreeSet<String>,
    /// Addresses at which its holder is connected to.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What it is for; none for a CA, and for one that does not say.
    pub(crate) usage: Option<Usage>,
    /// True for `CA:TRUE`.
    pub(crate) authority: bool,
    /// False when it says what it is for and does not name signing of certificates.
    pub(crate) may_sign: bool,
    /// The number that its authority gave it.
    pub(crate) serial: Vec<u8>,
    /// The key of its holder, in DER.
    pub(crate) public_key: Vec<u8>,
    /// When it begins.
    pub(crate) from: Time,
    /// When it ends.
    pub(crate) end: Time,
}

impl Certificate {
    /// The one certificate of a file in PEM.
    ///
    /// # Errors
    /// When there is none, there are several, or it is damaged.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Flaw> {
        Self::decode(&pem::single(bytes, "CERTIFICATE")?)
    }

    /// All certificates of a file in PEM, at least one.
    ///
    /// # Errors
    /// When there is none, or one is damaged.
    pub(crate) fn read_all(bytes: &[u8]) -> Result<Vec<Self>, Flaw> {
        let blocks = pem::parse(bytes)?;
        let found = blocks.iter().filter(|block| block.label == "CERTIFICATE").map(|block| Self::decode(&block.der));
        let found: Vec<Self> = found.collect::<Result<_, _>>()?;
        if found.is_empty() { Err(Flaw::NoBlock("CERTIFICATE")) } else { Ok(found) }
    }

    /// A certificate in DER.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn decode(der: &[u8]) -> Result<Self, Flaw> {
        let (rest, found) = parse_x509_certificate(der).map_err(|cause| Flaw::NoCertificate(cause.to_string()))?;
        if !rest.is_empty() {
            return Err(Flaw::NoCertificate(format!("{} bytes follow it", rest.len())));
        }
        let mut certificate = Self {
            der: der.to_vec(),
            subject: found.subject().as_raw().to_vec(),
            issuer: found.issuer().as_raw().to_vec(),
            common_name: texts(found.subject().iter_common_name()).pop().unwrap_or_default(),
            issuer_name: texts(found.issuer().iter_common_name()).pop().unwrap_or_default(),
            organizations: texts(found.subject().iter_organization()),
            names: BTreeSet::new(),
            addresses: BTreeSet::new(),
            usage: None,
            authority: false,
            may_sign: true,
            serial: found.raw_serial().to_vec(),
            public_key: found.public_key().raw.to_vec(),
            from: Time::new(found.validity().not_before.timestamp()),
            end: Time::new(found.validity().not_after.timestamp()),
        };
        for extension in found.extensions() {
            certificate.take(extension.parsed_extension())?;
        }
        Ok(certificate)
    }

    fn take(&mut self, extension: &ParsedExtension<'_>) -> Result<(), Flaw> {
        match extension {
            ParsedExtension::ParseError { error } => return Err(Flaw::NoCertificate(error.to_string())),
            ParsedExtension::BasicConstraints(constraints) => self.authority = constraints.ca,
            ParsedExtension::KeyUsage(usage) => self.may_sign = usage.key_cert_sign(),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                self.usage = match (usage.server_auth, usage.client_auth) {
                    (true, true) => Some(Usage::Both),
                    (true, false) => Some(Usage::Server),
                    (false, true) => Some(Usage::Client),
                    (false, false) => None,
                }
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => drop(self.names.insert((*name).to_owned())),
                        GeneralName::IPAddress(bytes) => self.addresses.extend(address(bytes)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether `authority` has signed this: by its name, byte for byte as Go compares it, and by its key.
    pub(crate) fn is_signed_by(&self, authority: &Self) -> bool {
        let verified = |this: &[u8], by: &[u8]| {
            let (this, by) = (parse_x509_certificate(this).ok()?.1, parse_x509_certificate(by).ok()?.1);
            this.verify_signature(Some(by.public_key())).ok()
        };
        self.issuer == authority.subject && verified(&self.der, &authority.der).is_some()
    }

    /// Whether `key` is its holder's.
    pub(crate) fn is_of(&self, key: &Key) -> bool {
        self.public_key == key.public_der()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({} until {})", self.common_name, self.end)
    }
}

fn texts<'a>(attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Vec<String> {
    attributes
        .map(|one| one.as_str().map_or_else(|_| String::from_utf8_lossy(one.as_slice()).into_owned(), str::to_owned))
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}
