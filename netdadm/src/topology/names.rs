//! Names and words of a topology.
//!
//! Invariant: what is a name here can stand in a certificate, in the DNS and in a label of Kubernetes alike.

use std::fmt;

use crate::document::Form;

/// Characters of a label of the DNS (RFC 1035, 2.3.4).
const LABEL: usize = 63;

/// Characters of a name of the DNS (RFC 1123, 2.1; Kubernetes allows as many).
const NAME: usize = 253;

/// Why `text` is no label of RFC 1123 in lower case.
fn label(text: &str) -> Result<(), String> {
    if text.len() > LABEL {
        return Err(format!("it has {} characters", text.len()));
    }
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match text.bytes().find(|byte| !inside(*byte)) {
        Some(b'_') => return Err("certificates carry no underscore".to_owned()),
        Some(byte) if byte.is_ascii_uppercase() => return Err("a Node's name has small letters only".to_owned()),
        Some(_) => return Err(String::new()),
        None => {}
    }
    if text.is_empty() || text.starts_with('-') || text.ends_with('-') { Err(String::new()) } else { Ok(()) }
}

/// Why `text` is no name of RFC 1123 in lower case.
fn name(text: &str) -> Result<(), String> {
    if text.len() > NAME {
        return Err(format!("it has {} characters", text.len()));
    }
    text.split('.').try_for_each(label)
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $check:expr, $accepted:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(String);

        impl Form for $name {
            const ACCEPTED: &str = $accepted;

            fn read(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// A word without dots.
    Label: label, "1 to 63 small letters, digits and hyphens, not at the ends (RFC 1123)";
    /// A name of the DNS.
    Domain: name, "a name of the DNS such as host.com, in small letters (RFC 1123)";
    /// The name of a host, which is that of its Node.
    HostName: host, "a host name in small letters, each part of at most 63, 253 in all (RFC 1123)";
    /// A folder.
    Folder: folder, "an absolute folder such as /usr/local/bin";
    /// A prefix of keys in etcd.
    Prefixed: keys, "keys such as /coreos.com/network";
}

/// The whole name is a label of the Node, `kubernetes.io/hostname`, whose values are shorter than names.
fn host(text: &str) -> Result<(), String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => return Ok(()),
        Ok(std::net::IpAddr::V6(_)) => return Err("a Node is called by no IPv6 address".to_owned()),
        Err(_) => name(text)?,
    }
    // As inet_aton(3) reads it.
    if text.split('.').all(|part| part.bytes().all(|byte| byte.is_ascii_digit()) || part.starts_with("0x")) {
        return Err("a resolver takes it for an address".to_owned());
    }
    if text == "localhost" || text.starts_with("localhost.") {
        return Err("every machine calls itself so".to_owned());
    }
    if text.len() > LABEL {
        return Err(format!("the label kubernetes.io/hostname takes {LABEL} characters, it has {}", text.len()));
    }
    Ok(())
}

/// A path that stands in a unit of systemd and in flags without quotes.
fn folder(text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    let steps = text.split('/').skip(1).all(|step| !matches!(step, "" | "." | ".."));
    if text.starts_with('/') && text.bytes().all(plain) && steps { Ok(()) } else { Err(String::new()) }
}

fn keys(text: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\$`%".contains(&byte);
    let ends = text.starts_with('/') && !text.ends_with('/');
    // netd refuses these, since whoever reads a key takes them for steps.
    let steps = text.split('/').all(|step| !matches!(step, "." | ".."));
    if ends && text.bytes().all(plain) && steps { Ok(()) } else { Err(String::new()) }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident: $accepted:literal { $($(#[$case:meta])* $word:literal => $variant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $name {
            $($(#[$case])* $variant,)*
        }

        impl Form for $name {
            const ACCEPTED: &str = $accepted;

            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(String::new()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }
    )*};
}

words! {
    /// What a host is for.
    Role: "etcd, control-plane, node or none" {
        /// A member of etcd.
        "etcd" => Etcd,
        /// API server, controller-manager, scheduler.
        "control-plane" => ControlPlane,
        /// kubelet, Pods, netd, ipvs-proxy.
        "node" => Node,
        /// Nothing of the cluster: a machine that is a client of it.
        "none" => Nothing,
    }

    /// Who says which Pod subnet a node has.
    SubnetPolicy: "node-ip or kubernetes" {
        /// netd, by the node's number in its network: 10.4.7.21 has 172.7.21.0/24.
        "node-ip" => NodeIp,
        /// The controller-manager, by `spec.podCIDR` of the Node.
        "kubernetes" => Kubernetes,
    }

    /// Yes or no.
    Switch: "true or false" {
        /// Yes.
        "true" => On,
        /// No.
        "false" => Off,
    }

    /// A component whose flags a topology may name.
    Component: "kube-apiserver, kube-controller-manager, kube-scheduler or kubelet" {
        /// The API server.
        "kube-apiserver" => ApiServer,
        /// The controllers.
        "kube-controller-manager" => ControllerManager,
        /// The scheduler.
        "kube-scheduler" => Scheduler,
        /// The kubelet.
        "kubelet" => Kubelet,
    }

    /// How nodes reach each other's Pods.
    Backend: "vxlan, host-gw or wireguard" {
        /// Tunnels over UDP.
        "vxlan" => Vxlan,
        /// Routes, where all nodes are on one link.
        "host-gw" => HostGw,
        /// Encrypted tunnels.
        "wireguard" => Wireguard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_certificate_or_a_node_cannot_carry_are_refused_with_the_reason() {
        let long = "a".repeat(64);
        let cases = [
            ("k8s_node", "certificates carry no underscore"),
            ("HDSS7-21", "a Node's name has small letters only"),
            (long.as_str(), "it has 64 characters"),
            ("-a", ""),
            ("a..b", ""),
            ("", ""),
            ("a b", ""),
        ];
        for (text, why) in cases {
            assert_eq!(HostName::read(text), Err(why.to_owned()), "{text}");
        }
        let whole = format!("{}.{}", "a".repeat(40), "b".repeat(40));
        assert!(HostName::read(&whole).unwrap_err().contains("kubernetes.io/hostname"), "{whole}");
        assert!(Domain::read(&whole).is_ok());
        for text in ["hdss7-21", "hdss7-21.host.com", "192.168.197.131", "a"] {
            assert_eq!(HostName::read(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn folders_are_absolute_and_plain() {
        for text in ["/usr/local/bin", "/opt/kubernetes-1.20.2/bin", "/"] {
            assert_eq!(Folder::read(text).is_ok(), text != "/", "{text}");
        }
        for text in ["bin", "/usr/../bin", "/a b", "/a//b", "/a/", "/$HOME"] {
            assert!(Folder::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_begin_with_a_slash() {
        assert!(Prefixed::read("/atomic.io/network").is_ok());
        for text in ["coreos.com", "/a/", "/a b", "/a\"b", "", "/", "/../x", "/a/./b"] {
            assert!(Prefixed::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_printed() {
        for role in [Role::Etcd, Role::ControlPlane, Role::Node, Role::Nothing] {
            assert_eq!(Role::read(&role.to_string()), Ok(role));
        }
        assert!(Role::read("master").is_err());
    }
}
