//! `Authority`: a CA with its key, new or an operator's, and what it signs.
//!
//! Invariant: an authority here is valid, may sign, and its key fits; a certificate that leaves it was read again and is
//! believed by who believes the authority.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use x509_parser::time::ASN1Time;

use super::{Ca, Certificate, Flaw, Key, Pair, Request, Time};

/// Days of a new authority, as kubeadm's.
const AUTHORITY_DAYS: i64 = 3650;
/// Days of what it signs, as kubeadm's.
const DAYS: i64 = 365;
/// Seconds before now at which a certificate begins, because clocks of hosts differ (kubeadm's too).
const BACK: i64 = 300;

/// A CA with its key.
#[derive(Debug)]
pub(crate) struct Authority {
    /// The text of its certificate's file.
    pub(crate) certificate_pem: String,
    /// Its certificate.
    pub(crate) certificate: Certificate,
    /// Its key.
    pub(crate) key: Key,
}

impl Authority {
    /// A new one of the kind `ca`.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub(crate) fn create(ca: Ca, now: Time) -> Result<Self, Flaw> {
        let key = Key::generate()?;
        let mut params = params(ca.common_name(), None, now.minus(BACK), now.plus_days(AUTHORITY_DAYS))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params.self_signed(key.pair()).map_err(unsigned)?.pem();
        let certificate = Certificate::read(certificate_pem.as_bytes())?;
        Ok(Self { certificate_pem, certificate, key })
    }

    /// An operator's, by the bytes of its files; `key_file` names the latter in a message.
    ///
    /// # Errors
    /// When it is not valid now, may not sign, or its key does not fit.
    pub(crate) fn read(bytes: &[u8], key: Key, key_file: &str, now: Time) -> Result<Self, Flaw> {
        let certificate = Certificate::read(bytes)?;
        if now < certificate.from {
            return Err(Flaw::NotYetValid { from: certificate.from, now });
        }
        if now > certificate.end {
            return Err(Flaw::Ended { end: certificate.end, now });
        }
        if !certificate.authority {
            return Err(Flaw::NoAuthority("it does not say CA:TRUE"));
        }
        if !certificate.may_sign {
            return Err(Flaw::NoAuthority("its uses have no signing of certificates"));
        }
        if !certificate.is_of(&key) {
            return Err(Flaw::KeyDoesNotFit(key_file.to_owned()));
        }
        Ok(Self { certificate_pem: String::from_utf8_lossy(bytes).into_owned(), certificate, key })
    }

    /// A new key and the certificate that `request` asks for.
    ///
    /// # Errors
    /// When a name is none, or nobody would believe what this signs.
    pub(crate) fn sign(&self, request: &Request, now: Time) -> Result<Pair, Flaw> {
        let key = Key::generate()?;
        let from = now.minus(BACK).max(self.certificate.from);
        let end = now.plus_days(DAYS).min(self.certificate.end);
        let mut params = params(&request.common_name, request.organization.as_deref(), from, end)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if request.usage.serves() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if request.usage.connects() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        for name in &request.names {
            let name = name.as_str().try_into().map_err(|_| Flaw::Name(name.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(request.addresses.iter().copied().map(SanType::IpAddress));
        let der = self.certificate.der.as_slice().into();
        let issuer = Issuer::from_ca_cert_der(&der, self.key.pair()).map_err(unsigned)?;
        let pem = params.signed_by(key.pair(), &issuer).map_err(unsigned)?.pem();
        self.believed(&Certificate::read(pem.as_bytes())?)?;
        Ok(Pair { certificate_pem: pem, key_pem: key.pem().clone() })
    }

    /// rcgen copies the subject field by field: one of two fields of a kind would be lost, and the chain with it.
    fn believed(&self, issued: &Certificate) -> Result<(), Flaw> {
        if issued.issuer != self.certificate.subject {
            return Err(Flaw::NotBelieved("its subject cannot be copied as it is"));
        }
        if issued.is_signed_by(&self.certificate) {
            Ok(())
        } else {
            Err(Flaw::NotBelieved("the signature is not its key's"))
        }
    }
}

fn params(common_name: &str, organization: Option<&str>, from: Time, end: Time) -> Result<CertificateParams, Flaw> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common_name);
    let date =
        |time: Time| ASN1Time::from_timestamp(time.seconds()).map_err(|_| Flaw::Unsigned(format!("no date {time}")));
    params.not_before = date(from)?.to_datetime();
    params.not_after = date(end)?.to_datetime();
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// A random number of 127 bits, never zero: a key that is signed again must not get the same number.
fn serial() -> Result<SerialNumber, Flaw> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Flaw::Randomness)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn unsigned(cause: rcgen::Error) -> Flaw {
    Flaw::Unsigned(cause.to_string())
}
