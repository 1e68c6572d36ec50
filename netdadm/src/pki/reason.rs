//! `Reason`: why a certificate or key is issued anew; or the pair that is there, which is kept.
//!
//! Pure. Invariant: a pair is kept when nothing of it differs from what would be issued but serial, key and dates, and more
//! than a third of its life is left.

use std::fmt;

use super::{Certificate, Key, Pair, Request, Secret, Time};

/// Why something is made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is not there.
    Missing,
    /// A file of it cannot be used.
    Unusable(String),
    /// Certificate and key are of different pairs.
    KeyDoesNotFit,
    /// Another CA signed it.
    OtherAuthority,
    /// It names somebody else.
    Subject {
        /// Whom.
        found: String,
    },
    /// It has other names or addresses.
    Names {
        /// What it lacks.
        missing: Vec<String>,
        /// What it has and should not.
        extra: Vec<String>,
    },
    /// It is for something else.
    Usage,
    /// Its life has not begun.
    NotYetValid(Time),
    /// Its life has ended.
    Ended(Time),
    /// Less than a third of its life is left.
    Due {
        /// Days that are left.
        days: i64,
    },
    /// It ends after its authority.
    Outlives,
    /// An operator asked for it.
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is none"),
            Self::Unusable(why) => f.write_str(why),
            Self::KeyDoesNotFit => f.write_str("its key does not fit"),
            Self::OtherAuthority => f.write_str("another CA signed it"),
            Self::Subject { found } => write!(f, "it names {found}"),
            Self::Names { missing, extra } => {
                let list = |what: &str, names: &[String]| match names {
                    [] => None,
                    names => Some(format!("{what} {}", names.join(", "))),
                };
                let both = [list("it lacks", missing), list("it has also", extra)];
                f.write_str(&both.into_iter().flatten().collect::<Vec<_>>().join("; "))
            }
            Self::Usage => f.write_str("it is for other uses"),
            Self::NotYetValid(from) => write!(f, "it is not valid before {from}"),
            Self::Ended(end) => write!(f, "it ended at {end}"),
            Self::Due { days } => write!(f, "less than a third of its life is left, {days} days"),
            Self::Outlives => f.write_str("it would outlive its CA"),
            Self::Asked => f.write_str("it was asked for"),
        }
    }
}

/// The files of a pair: bytes, or what keeps them from being read.
pub(super) type Files = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The pair of `files`, if `request` is met by it until it is due.
pub(super) fn kept(files: &Files, request: &Request, authority: &Certificate, now: Time) -> Result<Pair, Reason> {
    let (Some(certificate_pem), Some(key_pem)) = files else { return Err(Reason::Missing) };
    let unusable = |flaw: super::Flaw| Reason::Unusable(flaw.to_string());
    let certificate = Certificate::read(certificate_pem).map_err(unusable)?;
    let key = Key::read(key_pem).map_err(unusable)?;
    if !certificate.is_of(&key) {
        return Err(Reason::KeyDoesNotFit);
    }
    if !certificate.is_signed_by(authority) {
        return Err(Reason::OtherAuthority);
    }
    names(&certificate, request)?;
    dates(&certificate, authority, now)?;
    let certificate_pem = String::from_utf8_lossy(certificate_pem).into_owned();
    Ok(Pair { certificate_pem, key_pem: Secret::new(String::from_utf8_lossy(key_pem).into_owned()) })
}

fn names(found: &Certificate, request: &Request) -> Result<(), Reason> {
    let groups: Vec<String> = request.organization.iter().cloned().collect();
    if found.common_name != request.common_name || found.organizations != groups {
        let groups = found.organizations.iter().map(|group| format!(", O={group}")).collect::<String>();
        return Err(Reason::Subject { found: format!("CN={}{groups}", found.common_name) });
    }
    let all = |names: &std::collections::BTreeSet<String>, addresses: &std::collections::BTreeSet<std::net::IpAddr>| {
        names
            .iter()
            .cloned()
            .chain(addresses.iter().map(ToString::to_string))
            .collect::<std::collections::BTreeSet<_>>()
    };
    let (has, wants) = (all(&found.names, &found.addresses), all(&request.names, &request.addresses));
    if has != wants {
        let missing = wants.difference(&has).cloned().collect();
        return Err(Reason::Names { missing, extra: has.difference(&wants).cloned().collect() });
    }
    if found.usage == Some(request.usage) && !found.authority { Ok(()) } else { Err(Reason::Usage) }
}

fn dates(found: &Certificate, authority: &Certificate, now: Time) -> Result<(), Reason> {
    let (from, end) = (found.from, found.end);
    if now < from {
        return Err(Reason::NotYetValid(from));
    }
    if now > end {
        return Err(Reason::Ended(end));
    }
    if end > authority.end {
        return Err(Reason::Outlives);
    }
    let left = end.seconds().saturating_sub(now.seconds());
    let life = end.seconds().saturating_sub(from.seconds());
    if left.saturating_mul(3) > life { Ok(()) } else { Err(Reason::Due { days: now.days_until(end) }) }
}
