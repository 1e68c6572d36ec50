//! `Target`: what an operator asks about, as it was typed.
//!
//! Invariant: a text means one thing; a protocol behind the port is one of those that are served, TCP where none is given.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use netstate::Protocol;

use crate::object::ObjectName;

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// An address and port that a client connects to.
    Place {
        /// Transport protocol.
        protocol: Protocol,
        /// The address.
        addr: IpAddr,
        /// The port.
        port: u16,
    },
    /// A Service, at every place where it is reached.
    Service {
        /// Its name.
        name: ObjectName,
        /// Name or number of its port; every port when it is open.
        port: Option<String>,
        /// The protocol, if it was given.
        protocol: Option<Protocol>,
    },
}

/// What is accepted.
const ACCEPTED: &str =
    "ADDRESS:PORT, [ADDRESS]:PORT or NAMESPACE/NAME:PORT, each with /tcp, /udp or /sctp behind it where it is not TCP";

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || format!("{text:?} is no place; accepted: {ACCEPTED}");
        let (place, protocol) = match text.rsplit_once('/') {
            // Of `NAMESPACE/NAME` the name may be a protocol's.
            Some((place, word)) if place.contains(':') => match word.parse::<Protocol>() {
                Ok(protocol) => (place, Some(protocol)),
                Err(_) => return Err(refused()),
            },
            _ => (text, None),
        };
        if let Ok(at) = place.parse::<SocketAddr>() {
            let protocol = protocol.unwrap_or(Protocol::Tcp);
            return if at.port() == 0 {
                Err(refused())
            } else {
                Ok(Self::Place { protocol, addr: at.ip(), port: at.port() })
            };
        }
        let (name, port) = place.split_once(':').map_or((place, None), |(name, port)| (name, Some(port)));
        match name.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                let port = port.filter(|port| !port.is_empty()).map(str::to_owned);
                Ok(Self::Service { name: ObjectName::new(namespace, name), port, protocol })
            }
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_services_are_read_and_everything_else_is_refused() {
        let place = |protocol, addr: &str, port| Target::Place { protocol, addr: addr.parse().unwrap(), port };
        let service = |port: Option<&str>, protocol| Target::Service {
            name: ObjectName::new("default", "web"),
            port: port.map(str::to_owned),
            protocol,
        };
        for (text, expected) in [
            ("192.168.0.10:80", place(Protocol::Tcp, "192.168.0.10", 80)),
            ("192.168.0.53:53/udp", place(Protocol::Udp, "192.168.0.53", 53)),
            ("[fd00::10]:80/sctp", place(Protocol::Sctp, "fd00::10", 80)),
            ("default/web", service(None, None)),
            ("default/web:http", service(Some("http"), None)),
            ("default/web:53/udp", service(Some("53"), Some(Protocol::Udp))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["web", "192.168.0.10", "192.168.0.10:0", "192.168.0.10:80/icmp", "a/b/c", "/web:80", "default/"] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains("accepted: ADDRESS:PORT"), "{error}");
        }
    }
}
