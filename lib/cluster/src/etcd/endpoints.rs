//! The list of members as an operator types it.
//!
//! Invariant: an [`Endpoint`] is a URL of scheme, host and port and nothing else; it can be logged, because
//! user information in a URL is refused.

use std::fmt;

use crate::Problem;

/// One member: `http://10.4.7.12:2379` or `https://...`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint(String);

/// flannel's flag.
const FIELD: &str = "etcd-endpoints";
const ACCEPTED: &str = "comma-separated http://HOST:PORT or https://HOST:PORT, all of one scheme";

impl Endpoint {
    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the member is spoken to over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// Its host, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let authority = self.0.split_once("://").map_or(self.0.as_str(), |(_, rest)| rest);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Reads a comma-separated list. A member without scheme takes `https` when TLS files are given, as Go's
    /// etcd client does; a member named twice counts once.
    ///
    /// # Errors
    /// Every entry that is not of the accepted form, and an empty list.
    pub fn parse_list(text: &str, with_tls: bool) -> Result<Vec<Self>, Vec<Problem>> {
        let mut endpoints = Vec::new();
        let mut errors = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            match Self::parse(entry, with_tls) {
                Ok(endpoint) if endpoints.contains(&endpoint) => {}
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => errors.push(refuse(message)),
            }
        }
        if endpoints.is_empty() && errors.is_empty() {
            errors.push(refuse(format!("`{text}` names no member")));
        }
        if endpoints.iter().any(Self::is_tls) && !endpoints.iter().all(Self::is_tls) {
            errors.push(refuse(format!("`{text}` mixes http and https")));
        }
        if errors.is_empty() { Ok(endpoints) } else { Err(errors) }
    }

    fn parse(entry: &str, with_tls: bool) -> Result<Self, String> {
        // Neither has a case (RFC 3986 §3.1 and §3.2.2).
        let entry = entry.to_ascii_lowercase();
        let (scheme, rest) = match entry.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
            Some((scheme, _)) => return Err(format!("`{scheme}` is not a scheme")),
            None => (if with_tls { "https" } else { "http" }, entry.as_str()),
        };
        if rest.contains('@') {
            return Err("a user in the URL (give etcd-username and etcd-password instead)".into());
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(|| format!("`{entry}` has no port"))?;
        let host = host_of(host).ok_or_else(|| format!("`{entry}` has no valid host"))?;
        match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(Self(format!("{scheme}://{host}:{port}"))),
            _ => Err(format!("`{entry}` has no port in 1..=65535")),
        }
    }
}

/// A name (RFC 1123 letters, plus `_` which container networks use), an IPv4 address or an IPv6 address in
/// brackets (RFC 3986 §3.2.2), which is written as in RFC 5952.
fn host_of(host: &str) -> Option<String> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().ok().map(|addr| format!("[{addr}]"));
    }
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    is_name.then(|| host.to_owned())
}

fn refuse(message: String) -> Problem {
    Problem::new(FIELD, message, ACCEPTED)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, with_tls: bool) -> Vec<String> {
        Endpoint::parse_list(text, with_tls).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_reference_cluster_is_read() {
        let list = "http://10.4.7.12:2379,http://10.4.7.21:2379, http://10.4.7.22:2379/";
        assert_eq!(parsed(list, false), ["http://10.4.7.12:2379", "http://10.4.7.21:2379", "http://10.4.7.22:2379"]);
    }

    #[test]
    fn a_member_without_scheme_follows_the_tls_files() {
        assert_eq!(parsed("10.4.7.12:2379", false), ["http://10.4.7.12:2379"]);
        assert_eq!(
            parsed("etcd-1:2379,[2001:db8::1]:2379", true),
            ["https://etcd-1:2379", "https://[2001:db8::1]:2379"]
        );
    }

    #[test]
    fn a_host_is_shown_without_port_and_brackets() {
        let hosts = Endpoint::parse_list("https://etcd-1:2379,https://[2001:db8::1]:2379", true).unwrap();
        assert_eq!(hosts.iter().map(Endpoint::host).collect::<Vec<_>>(), ["etcd-1", "2001:db8::1"]);
    }

    #[test]
    fn a_member_named_twice_counts_once() {
        assert_eq!(parsed("http://a:1,http://a:1,", false), ["http://a:1"]);
    }

    #[test]
    fn a_member_in_another_spelling_is_the_same_one() {
        assert_eq!(parsed("http://etcd-1:2379,HTTP://Etcd-1:2379,http://ETCD-1:02379/", false), ["http://etcd-1:2379"]);
        assert_eq!(
            parsed("https://[2001:db8::1]:2379,https://[2001:DB8:0::1]:2379", true),
            ["https://[2001:db8::1]:2379"]
        );
    }

    #[test]
    fn every_malformed_entry_is_reported() {
        let errors =
            Endpoint::parse_list("ftp://a:1,http://a,http://:1,http://a:0,http://a:70000,http://[::1:2", false)
                .unwrap_err();
        assert_eq!(errors.len(), 6, "{errors:?}");
        assert!(errors.iter().all(|error| error.field == "etcd-endpoints"));
        assert_eq!(Endpoint::parse_list(" , ", false).unwrap_err().len(), 1);
        assert_eq!(Endpoint::parse_list("http://a:1,https://b:1", false).unwrap_err().len(), 1);
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let errors = Endpoint::parse_list("https://root:hunter2@a:1", false).unwrap_err();
        assert!(!format!("{errors:?}").contains("hunter2"));
    }
}
