//! `Attachment`: one interface of one container, and the names derived from it.
//!
//! Invariant: everything ADD names, DEL can name again from (container, interface) alone: no state file, namespace
//! or previous result is needed to find what belongs to an attachment.

use std::fmt;
use std::net::IpAddr;

use netstate::{IfName, MacAddr};
use sha2::{Digest, Sha256};

/// The identifier of a container: `[a-zA-Z0-9][a-zA-Z0-9_.-]*` (SPEC "Parameters").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

/// True for a text that begins with a letter or digit and goes on with letters, digits, `_`, `.` and `-`: the form
/// of container identifiers and of network names. Such a text is a safe file name, too.
#[must_use]
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl ContainerId {
    /// Checks `text`; `None` when it is no identifier.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        is_identifier(text).then(|| Self(text.to_owned()))
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The container.
    pub container: ContainerId,
    /// The interface's name inside the container.
    pub ifname: IfName,
    /// See [`Attachment::host_link`]: a hash, computed once.
    link: IfName,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {} of container {}", self.ifname, self.container)
    }
}

/// Digits of the base-32 form of a host end's name: lower case, without those easily misread.
const DIGITS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// `veth` and 11 digits that carry 55 bits of `hash`; fifteen letters and digits are always a name.
#[must_use]
pub(crate) fn link_name(hash: &[u8; 32]) -> Option<IfName> {
    let mut name = String::from("veth");
    for byte in hash.iter().take(11) {
        name.extend(DIGITS.get(usize::from(byte % 32)).map(|d| char::from(*d)));
    }
    IfName::new(name).ok()
}

impl Attachment {
    /// The interface `ifname` of `container`.
    #[must_use]
    pub fn new(container: ContainerId, ifname: IfName) -> Self {
        // The fallback exists for the type checker only.
        let link = link_name(&hash("link", &container, &ifname)).unwrap_or_else(|| ifname.clone());
        Self { container, ifname, link }
    }

    /// The name of the host end of the Pod's veth pair: `veth` and 11 digits that carry 55 bits of a hash.
    #[must_use]
    pub fn host_link(&self) -> &IfName {
        &self.link
    }

    /// The hardware address of the host end.
    #[must_use]
    pub fn host_mac(&self) -> MacAddr {
        self.mac("host")
    }

    /// The hardware address of the Pod's end: derived from its first address when there is one, so that a peer's
    /// stale neighbour entry of a reused address stays right; from the attachment otherwise.
    #[must_use]
    pub fn pod_mac(&self, addresses: &[IpAddr]) -> MacAddr {
        let v4 = addresses.iter().find(|a| a.is_ipv4());
        v4.or(addresses.first()).map_or_else(|| self.mac("pod"), |addr| mac_of_address(*addr))
    }

    /// The hardware address of the `ifb` device over which what the Pod sends goes.
    #[must_use]
    pub fn ifb_mac(&self) -> MacAddr {
        self.mac("ifb")
    }

    fn mac(&self, end: &str) -> MacAddr {
        let [a, b, c, d, e, f, ..] = hash(end, &self.container, &self.ifname);
        MacAddr::local([a, b, c, d, e, f])
    }
}

fn hash(purpose: &str, container: &ContainerId, ifname: &IfName) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [purpose, container.as_str(), ifname.as_str()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The hardware address that belongs to `addr`: `0a:58` and the four bytes of an IPv4 address (the convention of
/// kubenet and ocicni), `0a:` and a hash for IPv6.
#[must_use]
pub(crate) fn mac_of_address(addr: IpAddr) -> MacAddr {
    match addr {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            MacAddr([0x0a, 0x58, a, b, c, d])
        }
        IpAddr::V6(v6) => {
            let hash: [u8; 32] = Sha256::digest(v6.octets()).into();
            let [a, b, c, d, e, ..] = hash;
            MacAddr([0x0a, a, b, c, d, e])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment::new(ContainerId::new(container).unwrap(), IfName::new(ifname).unwrap())
    }

    #[test]
    fn identifiers_are_checked_as_the_specification_says() {
        for good in ["a", "0af", "a_b.c-d", "cbr0"] {
            assert!(ContainerId::new(good).is_some(), "{good}");
        }
        for bad in ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "..", "a;b"] {
            assert!(ContainerId::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_stable_and_differ_between_attachments() {
        let one = attachment("web-1", "eth0");
        assert_eq!(one.host_link(), attachment("web-1", "eth0").host_link());
        assert_eq!(one.host_link().as_str().len(), 15);
        let names: BTreeSet<_> = (0..2000)
            .flat_map(|n| ["eth0", "net1"].map(|i| attachment(&format!("pod{n}"), i).host_link().clone()))
            .collect();
        assert_eq!(names.len(), 4000);
        assert_ne!(attachment("a", "bc").host_link(), attachment("ab", "c").host_link());
    }

    #[test]
    fn name_of_a_release_never_changes() {
        // A node upgraded with Pods running finds its links by this name.
        assert_eq!(attachment("web-1", "eth0").host_link().as_str(), "vethgn5ac9sfczt");
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_follow_the_address() {
        let one = attachment("web-1", "eth0");
        let v4: IpAddr = "172.7.21.2".parse().unwrap();
        let v6: IpAddr = "fd00::2".parse().unwrap();
        assert_eq!(one.pod_mac(&[v6, v4]).to_string(), "0a:58:ac:07:15:02");
        for mac in [one.host_mac(), one.pod_mac(&[]), one.pod_mac(&[v6]), one.pod_mac(&[v4])] {
            assert_eq!(mac.0[0] & 3, 2, "{mac}");
        }
        assert_ne!(one.host_mac(), one.pod_mac(&[]));
    }
}
