//! Until when the certificates are valid that this program's clients use.
//!
//! Invariant: a certificate counts from the moment at which a client takes it until that client lets go of it; of several in one file the one
//! counts that ends first.

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::parse_x509_certificate;

use crate::registry::{Entry, Registry};

/// One or several certificates that are used for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Validity {
    /// Whom the client speaks to: `etcd` or `kubernetes`.
    pub server: &'static str,
    /// What it is: the client's own (`client`), or those by which the server is known (`ca`).
    pub certificate: &'static str,
    /// The last second, since 1970.
    pub end: i64,
}

static USED: Registry<Validity> = Registry::new();

/// What the clients of this process use, of several for one thing the one that ends first.
#[must_use]
pub fn in_use() -> Vec<Validity> {
    let mut all: Vec<Validity> = USED.values().iter().map(|(_, validity)| *validity).collect();
    all.sort_unstable();
    all.dedup_by_key(|validity| (validity.server, validity.certificate));
    all
}

/// Certificates that a client uses; dropped with it.
#[derive(Debug)]
pub(crate) struct InUse(#[allow(dead_code, reason = "kept for its drop")] Entry<Validity>);

impl InUse {
    /// A client of `server` uses what these PEM texts hold. A text without certificates adds nothing: who uses it says so.
    pub(crate) fn of_pem(server: &'static str, texts: [(&'static str, Option<&[u8]>); 2]) -> Self {
        let der = |text: &[u8]| CertificateDer::pem_slice_iter(text).flatten().map(|der| der.to_vec()).collect();
        Self::of_der(server, texts.map(|(certificate, text)| (certificate, text.map_or_else(Vec::new, der))))
    }

    /// The same of certificates in DER.
    pub(crate) fn of_der(server: &'static str, certificates: [(&'static str, Vec<Vec<u8>>); 2]) -> Self {
        let first = |(certificate, all): &(&'static str, Vec<Vec<u8>>)| {
            let end = all.iter().filter_map(|der| end_of(der)).min()?;
            Some(Validity { server, certificate, end })
        };
        Self(USED.take(certificates.iter().filter_map(first)))
    }
}

/// Whether a key in PEM is that of a certificate in PEM. Else every handshake would fail later, and pass for a fault of the server.
///
/// # Errors
/// Why not; `certificate` is its name there. The parser's own words are not repeated: they may quote the key.
pub(crate) fn belong_together(pem: &[u8], key: &[u8], certificate: &str) -> Result<(), String> {
    let chain: Result<_, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "holds no private key".to_owned())?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(|_| ())
        .map_err(|error| format!("does not belong to {certificate}: {error}"))
}

fn end_of(der: &[u8]) -> Option<i64> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(year: i32) -> String {
        let mut params = rcgen::CertificateParams::new(vec!["etcd".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn what_ends_first_counts_for_as_long_as_it_is_used() {
        let of = |server| in_use().into_iter().filter(|used| used.server == server).collect::<Vec<_>>();
        let (ca, client) = (pem(2040) + &pem(2031), pem(2030));
        let first = InUse::of_pem("one", [("ca", Some(ca.as_bytes())), ("client", Some(client.as_bytes()))]);
        let end = |certificate, end| Validity { server: "one", certificate, end };
        assert_eq!(of("one"), [end("ca", 1_924_992_000), end("client", 1_893_456_000)]);
        let second = InUse::of_pem("one", [("ca", None), ("client", Some(pem(2035).as_bytes()))]);
        assert_eq!(of("one").len(), 2);
        drop(first);
        assert_eq!(of("one"), [end("client", 2_051_222_400)]);
        drop(second);
        assert_eq!(of("one"), []);
        let _junk = InUse::of_pem("one", [("ca", Some(b"junk")), ("client", Some(b""))]);
        assert_eq!(of("one"), []);
    }
}
