//! From where a connection can come, and by which name its client has asked.
//!
//! Invariant: on a loopback address, what says more than metrics and whether the daemon is well is shown only to clients that name it `localhost` or by
//! its number: a page of somebody else's site in the operator's browser can have its own name lead here (DNS rebinding), not these.

use std::net::{IpAddr, SocketAddr};

use hyper::Request;
use hyper::header::HOST;

/// From where a connection can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From whoever may open the unix socket.
    Unix,
    /// From this host.
    Loopback,
    /// From other hosts.
    Network,
}

impl Reach {
    /// Of a connection that came in at `local`; what nobody knows may come from anywhere.
    pub(super) fn of(local: Option<SocketAddr>) -> Self {
        let loopback = |addr: SocketAddr| addr.ip().to_canonical().is_loopback();
        if local.is_some_and(loopback) { Self::Loopback } else { Self::Network }
    }

    /// True when whoever sends `request` may see more here than whether the daemon is well.
    pub(super) fn admits<B>(self, request: &Request<B>) -> bool {
        self != Self::Loopback || request.headers().get_all(HOST).iter().all(|host| host.to_str().is_ok_and(is_local))
    }
}

/// True for a name that leads to this host wherever it is asked for, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let number = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    number.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_somebody_else_is_refused_on_loopback_alone() {
        for (host, local) in [
            ("localhost", true),
            ("LocalHost:10247", true),
            ("127.0.0.1:10247", true),
            ("127.0.0.1", true),
            ("[::1]:10247", true),
            ("[::1]", true),
            ("10.4.7.21:8080", true),
            ("evil.example", false),
            ("evil.example:10247", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
            (":10247", false),
        ] {
            assert_eq!(is_local(host), local, "{host}");
            let request = Request::builder().header(HOST, host).body(()).unwrap();
            let admitted = [Reach::Unix, Reach::Loopback, Reach::Network].map(|reach| reach.admits(&request));
            assert_eq!(admitted, [true, local, true], "{host}");
        }
        let two = Request::builder().header(HOST, "localhost").header(HOST, "evil.example").body(()).unwrap();
        assert!(!Reach::Loopback.admits(&two));
        assert!(Reach::Loopback.admits(&Request::new(())), "no browser leaves it out");
    }

    #[test]
    fn a_connection_to_a_loopback_address_comes_from_this_host() {
        for (local, reach) in [
            ("127.0.0.1:10247", Reach::Loopback),
            ("[::1]:10247", Reach::Loopback),
            ("[::ffff:127.0.0.1]:10247", Reach::Loopback),
            ("10.4.7.21:10247", Reach::Network),
        ] {
            assert_eq!(Reach::of(local.parse().ok()), reach, "{local}");
        }
        assert_eq!(Reach::of(None), Reach::Network);
    }
}
