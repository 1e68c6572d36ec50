//! Why systemd did not do what it was asked to.
//!
//! Invariant: the operation, the unit, systemd's own words and what to do next stand in every message.

use std::time::Duration;

use thiserror::Error;

use super::UnitState;

/// A unit was not brought to where it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{operation} {unit}: {refused}{}", refused.advice(unit))]
pub struct UnitError {
    operation: &'static str,
    unit: String,
    /// Why.
    pub refused: Refused,
}

/// The reasons that there are.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// There is no such unit.
    #[error("there is no such unit")]
    Missing,
    /// The unit's file has an error.
    #[error("systemd cannot load its file ({0})")]
    Unreadable(String),
    /// Somebody has masked it.
    #[error("it is masked")]
    Masked,
    /// Another job is in the way.
    #[error("a job that must not be cancelled is in the way ({0})")]
    Busy(String),
    /// The unit knows no such job.
    #[error("it cannot do that ({0})")]
    NotApplicable(String),
    /// This user may not.
    #[error("this user may not ({0})")]
    Forbidden(String),
    /// No answer in time.
    #[error("not within {} s", .0.as_secs())]
    Late(Duration),
    /// The job has ended otherwise than in `done`.
    #[error("the job ended with {result}, the unit is {}", state.words())]
    Ended {
        /// systemd's word for it.
        result: String,
        /// What the unit was then.
        state: Box<UnitState>,
    },
    /// Anything else, in systemd's words.
    #[error("{0}")]
    Other(String),
}

impl UnitError {
    pub(super) fn of(unit: &str, operation: &'static str, refused: Refused) -> Self {
        Self { operation, unit: unit.to_owned(), refused }
    }
}

impl Refused {
    /// What a person does about it.
    fn advice(&self, unit: &str) -> String {
        match self {
            Self::Masked => format!("; if it is to run: systemctl unmask {unit}"),
            Self::Forbidden(_) => "; run it as root".to_owned(),
            Self::Unreadable(_) => format!("; see systemd-analyze verify {unit}"),
            Self::Busy(_) => "; see systemctl list-jobs".to_owned(),
            Self::Ended { .. } | Self::Late(_) => format!("; see journalctl --unit {unit}"),
            Self::Missing | Self::NotApplicable(_) | Self::Other(_) => String::new(),
        }
    }

    /// A name of an error on the bus, as systemd gives it.
    fn named(name: &str, text: String) -> Self {
        match name {
            "org.freedesktop.systemd1.NoSuchUnit" | "org.freedesktop.DBus.Error.FileNotFound" => Self::Missing,
            "org.freedesktop.systemd1.LoadFailed" | "org.freedesktop.systemd1.BadUnitSetting" => Self::Unreadable(text),
            "org.freedesktop.systemd1.UnitMasked" => Self::Masked,
            "org.freedesktop.systemd1.TransactionIsDestructive" => Self::Busy(text),
            "org.freedesktop.systemd1.JobTypeNotApplicable" => Self::NotApplicable(text),
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => Self::Forbidden(text),
            other => Self::Other(format!("{text} ({other})")),
        }
    }
}

impl From<zbus::Error> for Refused {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::MethodError(name, text, _) => Self::named(name.as_str(), text.unwrap_or_default()),
            zbus::Error::FDO(error) => {
                let name = zbus::DBusError::name(&*error).to_string();
                let text = zbus::DBusError::description(&*error).unwrap_or_default().to_owned();
                Self::named(&name, text)
            }
            other => Self::Other(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_systemd_come_in_words_with_what_to_do() {
        let said =
            |name: &str| UnitError::of("etcd.service", "start", Refused::named(name, "text".to_owned())).to_string();
        let cases = [
            ("org.freedesktop.systemd1.NoSuchUnit", "start etcd.service: there is no such unit"),
            ("org.freedesktop.systemd1.UnitMasked", "it is masked; if it is to run: systemctl unmask etcd.service"),
            ("org.freedesktop.systemd1.LoadFailed", "systemd-analyze verify etcd.service"),
            ("org.freedesktop.systemd1.TransactionIsDestructive", "systemctl list-jobs"),
            ("org.freedesktop.systemd1.JobTypeNotApplicable", "it cannot do that (text)"),
            ("org.freedesktop.DBus.Error.AccessDenied", "run it as root"),
            ("org.example.Odd", "text (org.example.Odd)"),
        ];
        for (name, part) in cases {
            assert!(said(name).contains(part), "{}", said(name));
        }
    }
}
