//! What the files of one place say of each other: whose key fits, who signed whom, who outlives whom.
//!
//! Pure. Invariant: each certificate is one row; several in one file are several rows.

use super::{Row, Text, serves};
use crate::pki::{Certificate, Flaw, Key, Time};

/// The rows of `texts`, which lie in one place, judged with `authorities` from elsewhere as well; what ends first comes first.
pub(crate) fn judge(texts: &[Text], authorities: &[Certificate], now: Time) -> Vec<Row> {
    let read: Vec<(&Text, Result<Vec<Certificate>, String>)> =
        texts.iter().map(|text| (text, certificates(text))).collect();
    let here = read.iter().flat_map(|(_, found)| found.iter().flatten()).filter(|found| found.authority);
    let known: Vec<&Certificate> = here.chain(authorities).collect();
    let mut rows = Vec::new();
    for (text, found) in &read {
        match found {
            Ok(found) => rows.extend(found.iter().enumerate().map(|(place, one)| {
                let mut row = Row::new(text, one, now);
                // A key is the first certificate's; the others lead to the authority.
                let key = text.key.as_ref().filter(|_| place == 0);
                row.problem =
                    row.problem.or_else(|| key.and_then(|key| misfit(key, one))).or_else(|| against(one, &known));
                row
            })),
            Err(why) => rows.push(Row::unusable(text, why.clone())),
        }
    }
    rows.sort_by(Row::order);
    rows
}

/// The certificates of a file in their order.
pub(super) fn certificates(text: &Text) -> Result<Vec<Certificate>, String> {
    let bytes = text.certificates.as_ref().map_err(Clone::clone)?;
    Certificate::read_all(bytes).map_err(|flaw| flaw.to_string())
}

fn misfit(key: &Result<Vec<u8>, String>, certificate: &Certificate) -> Option<String> {
    let key = match key {
        Ok(bytes) => Key::read(bytes),
        Err(why) => return Some(format!("its key: {why}")),
    };
    match key {
        Ok(key) if certificate.is_of(&key) => None,
        Ok(_) => Some("its key does not fit; issue it anew with `netdadm certs renew --only`".to_owned()),
        // A key that ring does not take may be one for openssl and Go.
        Err(Flaw::NoKey) => None,
        Err(flaw) => Some(format!("its key: {flaw}")),
    }
}

/// What is wrong with a certificate, judged by the authorities that are known.
fn against(certificate: &Certificate, known: &[&Certificate]) -> Option<String> {
    let named: Vec<&&Certificate> = known.iter().filter(|one| one.subject == certificate.issuer).collect();
    if !named.is_empty() && !named.iter().any(|one| certificate.is_signed_by(one)) {
        return Some(format!(
            "{} is here, and has not signed it: it is another CA's of that name",
            certificate.issuer_name
        ));
    }
    let signer = named.into_iter().find(|one| certificate.is_signed_by(one));
    if let Some(signer) = signer.filter(|signer| certificate.end > signer.end) {
        return Some(format!("it ends after its CA, whose end is {}", signer.end));
    }
    let nameless = serves(certificate.usage) && certificate.names.is_empty() && certificate.addresses.is_empty();
    nameless.then(|| "it is for servers and has no names beside its CN, which Go 1.15 and later refuse".to_owned())
}
