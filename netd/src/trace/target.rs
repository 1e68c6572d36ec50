//! `Target`: where the traced packet goes, as it was typed.
//!
//! Invariant: a text that is not wholly understood is refused with the accepted form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netstate::Protocol;

/// Where the packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// Address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// What is accepted.
const FORM: &str = "IP, IP:PORT or IP:PORT/udp; IPv6 as [IP]:PORT";

impl Target {
    /// The target when no port is given: one at which a node's daemon answers, and a Pod's kernel says that nobody is there.
    #[must_use]
    pub(crate) const fn without_port(address: IpAddr, port: u16) -> Self {
        Self { address: SocketAddr::new(address, port), protocol: Protocol::Udp }
    }

    /// Reads what was typed; `port` is taken where it names none.
    ///
    /// # Errors
    /// When it is none of the accepted forms.
    pub(crate) fn parse(text: &str, port: u16) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return one_host(address).map(|address| Self::without_port(address, port));
        }
        let refused = || format!("to {text:?} is not understood; accepted: {FORM}");
        let (address, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(refused()),
        };
        let address: SocketAddr = address.parse().map_err(|_| refused())?;
        one_host(address.ip())?;
        if address.port() == 0 { Err(refused()) } else { Ok(Self { address, protocol }) }
    }
}

/// `address`, where it is that of one host: of a packet to a group, to everybody on a link or to nobody there is no way to follow.
///
/// # Errors
/// When it is another one.
pub(super) fn one_host(address: IpAddr) -> Result<IpAddr, String> {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_multicast() || address.is_unspecified() || is_broadcast {
        return Err(format!(
            "{address} is the address of no one host; accepted: that of a Pod, a Service, a node or another host"
        ));
    }
    Ok(address)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_anything_else_is_refused() {
        for (text, shown) in [
            ("172.7.22.2", "172.7.22.2:10247/udp"),
            ("172.7.22.2:80", "172.7.22.2:80/tcp"),
            ("172.7.22.2:53/udp", "172.7.22.2:53/udp"),
            ("fc00::2", "[fc00::2]:10247/udp"),
            ("[fc00::2]:80/tcp", "[fc00::2]:80/tcp"),
        ] {
            assert_eq!(Target::parse(text, 10247).unwrap().to_string(), shown);
        }
        for text in ["", "web", "172.7.22.2:", "172.7.22.2:0", "172.7.22.2:80/sctp", "172.7.22.2/80", "fc00::2/udp"] {
            let refusal = Target::parse(text, 10247).unwrap_err();
            assert!(refusal.contains("accepted: IP, IP:PORT"), "{text}: {refusal}");
        }
        for text in ["224.0.0.1", "255.255.255.255:80", "0.0.0.0", "::", "[ff02::1]:80/udp"] {
            let refusal = Target::parse(text, 10247).unwrap_err();
            assert!(refusal.contains("is the address of no one host; accepted: "), "{text}: {refusal}");
        }
    }
}
