//! Certificates that lie in a rendered folder or on a host: each with use, names, authority and the days that are left.
//!
//! Invariant: a file that cannot be read or does not belong to what lies beside it is a row with its reason, never left out
//! and never the end of the listing; keys are read to be compared, and nothing of them is kept.

mod judgement;
mod search;
#[cfg(test)]
mod tests;

use std::path::Path;

use judgement::{certificates, judge};
pub(crate) use search::Place;
use search::{Text, search};

use serde::Serialize;

use crate::pki::{Certificate, Time, Usage};

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// The host that gets it; none for what operators keep, and on the host itself.
    pub(crate) host: Option<String>,
    /// Its file, as it is reached from here.
    pub(crate) file: String,
    /// Whom it names.
    pub(crate) subject: String,
    /// The groups of whom it names.
    pub(crate) organizations: Vec<String>,
    /// Names and addresses under which its holder is connected to.
    pub(crate) names: Vec<String>,
    /// What it is for.
    #[serde(rename = "use")]
    pub(crate) usage: String,
    /// Who signed it.
    pub(crate) authority: String,
    /// When it ends.
    pub(crate) ends: Option<String>,
    /// Whole days until then; negative when it has ended.
    pub(crate) days: Option<i64>,
    /// What is wrong with it beside that.
    pub(crate) problem: Option<String>,
    #[serde(skip)]
    end: Option<Time>,
}

impl Row {
    /// The row of `certificate`.
    fn new(text: &Text, certificate: &Certificate, now: Time) -> Self {
        let usage = match certificate.usage {
            _ if certificate.authority => "authority".to_owned(),
            Some(usage) => usage.to_string(),
            None => "any".to_owned(),
        };
        let addresses = certificate.addresses.iter().map(ToString::to_string);
        Self {
            host: text.host.clone(),
            file: text.file.clone(),
            subject: certificate.common_name.clone(),
            organizations: certificate.organizations.clone(),
            names: certificate.names.iter().cloned().chain(addresses).collect(),
            usage,
            authority: certificate.issuer_name.clone(),
            ends: Some(certificate.end.to_string()),
            days: Some(now.days_until(certificate.end)),
            problem: (now < certificate.from).then(|| format!("it is not valid before {}", certificate.from)),
            end: Some(certificate.end),
        }
    }

    /// The row of a file that has no certificate that can be read.
    fn unusable(text: &Text, problem: String) -> Self {
        Self {
            host: text.host.clone(),
            file: text.file.clone(),
            subject: String::new(),
            organizations: Vec::new(),
            names: Vec::new(),
            usage: String::new(),
            authority: String::new(),
            ends: None,
            days: None,
            problem: Some(problem),
            end: None,
        }
    }

    /// What ends first, or cannot be read, before what has time.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.end, &self.host, &self.file).cmp(&(other.end, &other.host, &other.file))
    }

    /// True when somebody has to act: something is wrong, or `days` are not left any more.
    pub(crate) fn is_due(&self, days: i64) -> bool {
        self.problem.is_some() || self.days.is_none_or(|left| left < days)
    }
}

/// Every certificate of what `render` wrote into `folder`; what ends first comes first.
///
/// # Errors
/// When no `render` wrote there.
pub(crate) fn rendered(folder: &Path, now: Time) -> Result<Vec<Row>, String> {
    let places: Vec<Vec<Text>> = Place::rendered(folder)?.iter().map(search).collect();
    let authorities: Vec<Certificate> = places
        .iter()
        .flatten()
        .filter_map(|text| certificates(text).ok())
        .flatten()
        .filter(|one| one.authority)
        .collect();
    let mut rows: Vec<Row> = places.iter().flat_map(|texts| judge(texts, &authorities, now)).collect();
    rows.sort_by(Row::order);
    Ok(rows)
}

/// Every certificate of the host whose root is `root`; what ends first comes first.
pub(crate) fn host(root: &Path, now: Time) -> Vec<Row> {
    judge(&search(&Place::root(root)), &[], now)
}

/// Whether `usage` serves, for judgements about names.
fn serves(usage: Option<Usage>) -> bool {
    usage.is_some_and(Usage::serves)
}
