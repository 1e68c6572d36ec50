//! How to reach etcd: members, TLS, user, time limits.
//!
//! Invariants: everything wrong is reported at once, each with the field an operator knows it by; the password
//! is in no `Debug` output.

use std::fmt;
use std::time::Duration;

use etcd_client::{ConnectOptions, TlsOptions};

use super::endpoints::Endpoint;
use super::tls::TlsMaterial;
use crate::Problem;

/// How to reach etcd, as the operator typed it. Field names in errors are flannel's flags.
#[derive(Clone, Default)]
pub struct Config {
    /// Comma-separated members, `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoints: String,
    /// What TLS members are trusted and asked with; the system's roots without a CA.
    pub tls: TlsMaterial,
    /// User for etcd's own authentication; needs `password`.
    pub username: Option<String>,
    /// Password of `username`.
    pub password: Option<String>,
    /// Time limits and sizes.
    pub limits: Limits,
}

/// Time limits of the client. The defaults suit a local network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// To open a connection. Default 1 s.
    pub connect: Duration,
    /// For one attempt at one member, answer included. Default 3 s.
    pub operation: Duration,
    /// Silence on a connection with an open watch after which the member is pinged. Default 6 s.
    ///
    /// Not below etcd's `--grpc-keepalive-min-time`, 5 s: a member hangs up on the third ping that comes too
    /// early (measured with 3.4.23: pinged each second, a quiet watch ends after 4 s).
    pub keep_alive: Duration,
    /// How long the answer to a ping may take. Default 3 s.
    pub keep_alive_answer: Duration,
    /// Keys per page of a listing, 1 or more. Default 1000.
    pub page: u32,
    /// How often a member that is not in use is asked how far it is, on the average, in a cluster without keys; see
    /// `comparison`. Default 5 s.
    pub compare: Duration,
    /// How often a watch that has nothing to report is checked, on the average: one number is asked for. Default 10 min.
    pub audit: Duration,
    /// How many such checks pass until everything is listed anew all the same, 1 or more. Default 36, six hours.
    pub audits_per_listing: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            operation: Duration::from_secs(3),
            keep_alive: Duration::from_secs(6),
            keep_alive_answer: Duration::from_secs(3),
            page: 1000,
            compare: Duration::from_secs(5),
            audit: Duration::from_secs(600),
            audits_per_listing: 36,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("limits", &self.limits)
            .finish()
    }
}

impl Config {
    /// Name and password, `None` without either; problems are added to `errors`.
    pub(super) fn user(&self, errors: &mut Vec<Problem>) -> Option<(String, String)> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (given(&self.username), given(&self.password)) {
            (Some(name), Some(password)) => Some((name, password)),
            (None, None) => None,
            (Some(_), None) => {
                errors.push(missing("etcd-password", "missing, but etcd-username is given"));
                None
            }
            (None, Some(_)) => {
                errors.push(missing("etcd-username", "missing, but etcd-password is given"));
                None
            }
        }
    }

    /// What every connection is made with beside TLS and the user.
    pub(super) fn options(&self) -> ConnectOptions {
        ConnectOptions::new()
            .with_connect_timeout(self.limits.connect)
            .with_keep_alive(self.limits.keep_alive, self.limits.keep_alive_answer)
            // etcd counts a ping on a connection without a stream as abuse and hangs up after the third
            // (embed/etcd.go: PermitWithoutStream false). A watch is a stream, so watches are pinged.
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true)
    }

    /// What TLS members are spoken to with, `None` when they are not; problems are added to `errors`.
    pub(super) fn tls_options(&self, endpoints: &[Endpoint], errors: &mut Vec<Problem>) -> Option<TlsOptions> {
        if endpoints.iter().any(Endpoint::is_tls) {
            return self.tls.options().map_err(|found| errors.extend(found)).ok();
        }
        if self.tls.any() && !endpoints.is_empty() {
            errors.push(Problem::new(
                "etcd-endpoints",
                "TLS files are given, but the members are http",
                "https://HOST:PORT with etcd-cafile",
            ));
        }
        None
    }
}

fn missing(field: &'static str, message: &str) -> Problem {
    Problem::new(field, message, "both or neither of etcd-username and etcd-password")
}

#[cfg(test)]
mod tests {
    use super::super::client::Client;
    use super::super::tls::TlsFiles;
    use super::*;

    fn fields(config: &Config) -> Vec<String> {
        match Client::new(config, 1) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(|error| error.field.to_string()).collect(),
        }
    }

    #[test]
    fn members_are_not_pinged_more_often_than_they_accept() {
        assert!(Limits::default().keep_alive >= Duration::from_secs(5));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let config = Config {
            endpoints: "https://a:1,https://b".into(),
            username: Some("root".into()),
            tls: TlsFiles { cert: Some("/nowhere/cert".into()), ..TlsFiles::default() }.read(),
            ..Config::default()
        };
        assert_eq!(fields(&config), ["etcd-endpoints", "etcd-password"]);
        let config = Config { endpoints: "https://a:1".into(), ..config };
        assert_eq!(fields(&config), ["etcd-password", "etcd-keyfile"]);
    }

    #[test]
    fn tls_files_with_plain_members_are_refused_instead_of_ignored() {
        let config = Config {
            endpoints: "http://a:1".into(),
            tls: TlsFiles { ca: Some("/x".into()), ..TlsFiles::default() }.read(),
            ..Config::default()
        };
        assert_eq!(fields(&config), ["etcd-endpoints"]);
    }

    #[test]
    fn a_password_is_in_no_debug_output() {
        let config = Config {
            endpoints: "http://127.0.0.1:1".into(),
            username: Some("root".into()),
            password: Some("hunter2".into()),
            ..Config::default()
        };
        let client = Client::new(&config, 1).unwrap();
        assert!(!format!("{config:?} {client:?}").contains("hunter2"));
    }
}
