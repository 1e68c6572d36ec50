//! The subnet file from this daemon's side: read before anything is chosen, written when the data path stands.
//!
//! Invariant: a file that cannot be read is the same as none; it is reported and replaced, never fatal.

use std::io;
use std::path::Path;

use netstate::Prefix;
use netstate::family::PerFamily;
use netstate::subnet_file::{LONGEST, SubnetFile};

use crate::format::net_conf::Network;
use crate::plan::Planner;
use daemon::files;

/// What the file says, for readers to whom one that cannot be read is the same as none.
pub(crate) fn load(path: &Path) -> Option<SubnetFile> {
    SubnetFile::parse(&bounded::read_text(path, LONGEST).ok()?).ok()
}

/// The subnets that the file names for `network`, of each family that it does.
#[must_use]
pub(super) fn previous(path: &Path, network: &Network) -> PerFamily<Option<Prefix>> {
    let text = match bounded::read_text(path, LONGEST) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return PerFamily::default(),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the subnet file of an earlier run cannot be read");
            return PerFamily::default();
        }
    };
    match SubnetFile::parse(&text) {
        Ok(file) => {
            let serves = |family| {
                network
                    .pools
                    .get(family)
                    .as_ref()
                    .is_some_and(|pool| file.networks().any(|network| *network == pool.network))
            };
            PerFamily::new(file.subnet_v4, file.subnet_v6).map(|family, subnet| subnet.filter(|_| serves(family)))
        }
        Err(reason) => {
            tracing::warn!(file = %path.display(), %reason, "the subnet file of an earlier run is not used");
            PerFamily::default()
        }
    }
}

/// Names this node's subnets to the CNI plugin. Returns whether the file had to be written.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: &Path, network: &Network, planner: &Planner, ip_masq: bool) -> io::Result<bool> {
    let subnets = planner.local().places.map(|_, place| place.map(|place| place.subnet));
    files::replace(path, text(network, subnets, planner.pod_mtu(), ip_masq).as_bytes())
}

fn text(network: &Network, subnets: PerFamily<Option<Prefix>>, mtu: u32, ip_masq: bool) -> String {
    let networks = PerFamily::partition(network.networks(), Prefix::family);
    let (networks_v4, networks_v6) = (networks.v4, networks.v6);
    SubnetFile { networks_v4, subnet_v4: subnets.v4, networks_v6, subnet_v6: subnets.v6, mtu, ip_masq }.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;

    fn network(text: &str) -> Network {
        NetConf::parse(text).unwrap().network
    }

    fn subnets(v4: &str, v6: &str) -> PerFamily<Option<Prefix>> {
        PerFamily::new(v4.parse().ok(), v6.parse().ok())
    }

    #[test]
    fn what_is_written_is_the_previous_subnet_of_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let pods = network(r#"{"Network":"172.7.0.0/16"}"#);
        let subnets = subnets("172.7.21.0/24", "");
        assert_eq!(previous(&path, &pods), PerFamily::default());
        std::fs::write(&path, text(&pods, subnets, 1450, true)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(previous(&path, &pods), subnets);
        assert_eq!(
            previous(&path, &network(r#"{"Network":"10.244.0.0/16"}"#)),
            PerFamily::default(),
            "another network's"
        );
        std::fs::write(&path, "FLANNEL_NETWORK=junk\n").unwrap();
        assert_eq!(previous(&path, &pods), PerFamily::default());
    }

    #[test]
    fn a_file_of_more_than_64_kib_is_the_same_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let pods = network(r#"{"Network":"172.7.0.0/16"}"#);
        let subnets = subnets("172.7.21.0/24", "");
        let padded = |length: usize| {
            let text = text(&pods, subnets, 1450, true);
            std::fs::write(&path, format!("{text}#{}\n", "x".repeat(length - text.len() - 2))).unwrap();
            previous(&path, &pods)
        };
        assert_eq!(padded(64 * 1024), subnets);
        assert_eq!(padded(64 * 1024 + 1), PerFamily::default());
    }

    #[test]
    fn both_families_are_written_as_flannel_writes_them_and_read_each_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let both = r#"{"Network":"10.244.0.0/16","IPv6Network":"fc00::/48","EnableIPv6":true}"#;
        let dual = subnets("10.244.1.0/24", "fc00:0:0:1::/64");
        std::fs::write(&path, text(&network(both), dual, 1430, true)).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
             FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(previous(&path, &network(both)), dual);
        assert_eq!(previous(&path, &network(r#"{"Network":"10.244.0.0/16"}"#)), subnets("10.244.1.0/24", ""));
        let v6 = both.replace("10.244.0.0/16", "10.9.0.0/16");
        assert_eq!(previous(&path, &network(&v6)), subnets("", "fc00:0:0:1::/64"), "IPv4 has another network");
        let alone = text(&network(both), subnets("", "fc00:0:0:1::/64"), 1430, false);
        assert_eq!(
            alone,
            "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n"
        );
    }
}
