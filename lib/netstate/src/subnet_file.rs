//! The subnet file, /run/flannel/subnet.env: the contract between `netd` and the CNI plugin.
//!
//! Invariant: keys, order and meaning are flannel's (main.go `WriteSubnetFile`), so that each side can be replaced
//! alone. Unknown keys are ignored; lists separated by commas are accepted where flannel's own plugin accepts them.

use std::fmt;
use std::net::IpAddr;

use crate::{IpFamily, Prefix};

/// Where the file stands unless configured otherwise.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// The longest such file that is read, in bytes.
pub const LONGEST: u64 = 64 * 1024;

/// What the subnet file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetFile {
    /// All Pod networks of the cluster, IPv4 (`FLANNEL_NETWORK`).
    pub networks_v4: Vec<Prefix>,
    /// This node's IPv4 subnet (`FLANNEL_SUBNET`, written as its first usable address).
    pub subnet_v4: Option<Prefix>,
    /// All Pod networks of the cluster, IPv6 (`FLANNEL_IPV6_NETWORK`).
    pub networks_v6: Vec<Prefix>,
    /// This node's IPv6 subnet (`FLANNEL_IPV6_SUBNET`).
    pub subnet_v6: Option<Prefix>,
    /// MTU of Pod interfaces in bytes (`FLANNEL_MTU`).
    pub mtu: u32,
    /// Somebody else masquerades traffic that leaves the cluster (`FLANNEL_IPMASQ`).
    pub ip_masq: bool,
}

/// Why a subnet file is not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidSubnetFile {
    /// Keys without which a Pod cannot be wired.
    Missing(Vec<&'static str>),
    /// A line of a known key that does not parse.
    Line {
        /// Line number, from 1.
        number: usize,
        /// The line's key, or the whole line when it has no `=`.
        key: String,
        /// The accepted form.
        accepted: &'static str,
    },
}

impl fmt::Display for InvalidSubnetFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(keys) => write!(f, "is missing {}", keys.join(", ")),
            Self::Line { number, key, accepted } => write!(f, "line {number}: {key}: accepted is {accepted}"),
        }
    }
}

impl std::error::Error for InvalidSubnetFile {}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

impl SubnetFile {
    /// Reads the file's text.
    ///
    /// # Errors
    /// When a known key's value does not parse, or when the network, the subnet, the MTU or the masquerade flag is
    /// missing.
    pub fn parse(text: &str) -> Result<Self, InvalidSubnetFile> {
        let mut file = Self::default();
        let (mut mtu, mut ip_masq) = (None, None);
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let value = value.trim().trim_matches(['"', '\'']);
            let bad = |accepted| InvalidSubnetFile::Line { number: index + 1, key: key.to_owned(), accepted };
            match key.trim() {
                NETWORK => file.networks_v4 = prefixes(value, IpFamily::V4).ok_or_else(|| bad(LIST_V4))?,
                IPV6_NETWORK => file.networks_v6 = prefixes(value, IpFamily::V6).ok_or_else(|| bad(LIST_V6))?,
                SUBNET => file.subnet_v4 = Some(prefix(value, IpFamily::V4).ok_or_else(|| bad(ONE_V4))?),
                IPV6_SUBNET => file.subnet_v6 = Some(prefix(value, IpFamily::V6).ok_or_else(|| bad(ONE_V6))?),
                MTU => mtu = Some(mtu_bytes(value).ok_or_else(|| bad("a number of bytes from 68 to 65535"))?),
                IPMASQ => ip_masq = Some(value.parse().map_err(|_| bad("true or false"))?),
                key if is_shell_of_known(key) => {
                    return Err(bad("KEY=VALUE, without export and without quotes around both"));
                }
                _ => {}
            }
        }
        file.check(mtu, ip_masq)
    }

    fn check(mut self, mtu: Option<u32>, ip_masq: Option<bool>) -> Result<Self, InvalidSubnetFile> {
        let mut missing = Vec::new();
        if self.networks_v4.is_empty() && self.networks_v6.is_empty() {
            missing.extend([NETWORK, IPV6_NETWORK]);
        }
        if self.subnet_v4.is_none() && self.subnet_v6.is_none() {
            missing.extend([SUBNET, IPV6_SUBNET]);
        }
        match mtu {
            Some(mtu) => self.mtu = mtu,
            None => missing.push(MTU),
        }
        match ip_masq {
            Some(ip_masq) => self.ip_masq = ip_masq,
            None => missing.push(IPMASQ),
        }
        if missing.is_empty() { Ok(self) } else { Err(InvalidSubnetFile::Missing(missing)) }
    }

    /// All Pod networks of the cluster.
    pub fn networks(&self) -> impl Iterator<Item = &Prefix> {
        self.networks_v4.iter().chain(&self.networks_v6)
    }

    /// The file's text, to the byte as flannel writes it.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut pair = |network, networks: &[Prefix], key, subnet: Option<Prefix>| {
            let Some(subnet) = subnet else { return };
            let list: Vec<String> = networks.iter().map(Prefix::to_string).collect();
            let first: IpAddr = subnet.nth(1).unwrap_or(subnet.addr());
            text.push_str(&format!("{network}={}\n{key}={first}/{}\n", list.join(","), subnet.len()));
        };
        pair(NETWORK, &self.networks_v4, SUBNET, self.subnet_v4);
        pair(IPV6_NETWORK, &self.networks_v6, IPV6_SUBNET, self.subnet_v6);
        text.push_str(&format!("{MTU}={}\n{IPMASQ}={}\n", self.mtu, self.ip_masq));
        text
    }
}

/// True for a known key as a shell would read it, which no reader of this file does: `export KEY`, `"KEY`.
fn is_shell_of_known(key: &str) -> bool {
    let bare = key.trim_matches(|c: char| !c.is_ascii_uppercase());
    let bare = bare.rsplit(|c: char| c.is_whitespace() || c == '"' || c == '\'').next().unwrap_or_default();
    [NETWORK, SUBNET, IPV6_NETWORK, IPV6_SUBNET, MTU, IPMASQ].contains(&bare)
}

const LIST_V4: &str = "a comma-separated list of networks such as 172.7.0.0/16";
const LIST_V6: &str = "a comma-separated list of networks such as fd00::/48";
const ONE_V4: &str = "a subnet such as 172.7.21.1/24";
const ONE_V6: &str = "a subnet such as fd00:0:0:1::1/64";

fn prefix(text: &str, family: IpFamily) -> Option<Prefix> {
    text.trim().parse::<Prefix>().ok().filter(|prefix| prefix.family() == family)
}

fn prefixes(text: &str, family: IpFamily) -> Option<Vec<Prefix>> {
    let mut list = Vec::new();
    for item in text.split(',') {
        let network = prefix(item, family)?;
        if !list.contains(&network) {
            list.push(network);
        }
    }
    Some(list)
}

fn mtu_bytes(text: &str) -> Option<u32> {
    text.parse().ok().filter(|mtu| (68..=65535).contains(mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
        FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn flannels_text_survives_a_round_trip_to_the_byte() {
        assert_eq!(SubnetFile::parse(DUAL).unwrap().render(), DUAL);
    }

    #[test]
    fn line_that_only_a_shell_would_read_is_named() {
        for line in [
            "export FLANNEL_SUBNET=172.7.21.1/24",
            "\"FLANNEL_SUBNET=172.7.21.1/24\"",
            "'FLANNEL_SUBNET'=172.7.21.1/24",
            "declare -x FLANNEL_SUBNET=172.7.21.1/24",
            "set FLANNEL_SUBNET = 172.7.21.1/24",
            "FLANNEL_SUBNET+=172.7.21.1/24",
        ] {
            let text = format!("# netd\nFLANNEL_NETWORK=172.7.0.0/16\n{line}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
            let error = SubnetFile::parse(&text).unwrap_err();
            assert!(matches!(error, InvalidSubnetFile::Line { number: 3, .. }), "{line}: {error}");
            assert!(error.to_string().contains("FLANNEL_SUBNET") && error.to_string().contains("export"), "{error}");
        }
        let quoted = DUAL.replace("=10.244.0.0/16", "=\"10.244.0.0/16\"").replace("=1450", "='1450'");
        assert_eq!(SubnetFile::parse(&quoted), SubnetFile::parse(DUAL), "quotes around a value are dropped");
        let others = format!("{DUAL}export OTHER=1\nMY_FLANNEL_MTU_2=x\n");
        assert_eq!(SubnetFile::parse(&others), SubnetFile::parse(DUAL));
    }

    #[test]
    fn lists_and_unknown_keys_are_read_as_flannels_plugin_reads_them() {
        let text = "X=1\nFLANNEL_NETWORK=172.7.0.0/16,10.1.0.0/16,172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false";
        let file = SubnetFile::parse(text).unwrap();
        assert_eq!(file.networks_v4.len(), 2);
        assert_eq!(file.subnet_v4.unwrap().to_string(), "172.7.21.0/24");
        assert!(!file.ip_masq);
    }

    #[test]
    fn every_missing_key_is_named() {
        let error = SubnetFile::parse("FLANNEL_NETWORK=172.7.0.0/16\n").unwrap_err();
        assert_eq!(error.to_string(), "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
    }

    #[test]
    fn bad_lines_name_line_key_and_form() {
        for (line, key) in [
            ("FLANNEL_MTU=big", MTU),
            ("FLANNEL_MTU=10", MTU),
            ("FLANNEL_SUBNET=172.7.21.1", SUBNET),
            ("FLANNEL_SUBNET", SUBNET),
            ("FLANNEL_SUBNET=fc00::1/64", SUBNET),
            ("FLANNEL_NETWORK=172.7.0.0/16,junk", NETWORK),
            ("FLANNEL_IPMASQ=yes", IPMASQ),
        ] {
            match SubnetFile::parse(&format!("# made by hand\n{line}\n")) {
                Err(InvalidSubnetFile::Line { number: 2, key: k, .. }) => assert_eq!(k, key),
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
