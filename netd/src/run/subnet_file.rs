//! The subnet file from this daemon's side: read before anything is chosen, written when the data path stands.
//!
//! Invariant: a file that cannot be read is the same as none; it is reported and replaced, never fatal.

use std::io;
use std::path::Path;

use netstate::Prefix;
use netstate::subnet_file::SubnetFile;

use super::files;
use crate::format::net_conf::Network;

/// The subnet that the file names for `network`, if it does.
#[must_use]
pub(super) fn previous(path: &Path, network: &Network) -> Option<Prefix> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the subnet file of an earlier run cannot be read");
            return None;
        }
    };
    match SubnetFile::parse(&text) {
        Ok(file) if network.networks().any(|network| file.networks_v4.contains(&network)) => file.subnet_v4,
        Ok(_) => None,
        Err(reason) => {
            tracing::warn!(file = %path.display(), %reason, "the subnet file of an earlier run is not used");
            None
        }
    }
}

/// Names this node's subnet to the CNI plugin. Returns whether the file had to be written.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(path: &Path, network: &Network, subnet: Prefix, mtu: u32, ip_masq: bool) -> io::Result<bool> {
    let file = SubnetFile {
        networks_v4: network.networks().filter(Prefix::is_ipv4).collect(),
        subnet_v4: Some(subnet),
        mtu,
        ip_masq,
        ..SubnetFile::default()
    };
    files::replace(path, file.render().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;

    #[test]
    fn what_is_written_is_the_previous_subnet_of_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let network = |text: &str| NetConf::parse(&format!(r#"{{"Network":"{text}"}}"#)).unwrap().network;
        let pods = network("172.7.0.0/16");
        let subnet = "172.7.21.0/24".parse().unwrap();
        assert_eq!(previous(&path, &pods), None);
        assert!(write(&path, &pods, subnet, 1450, true).unwrap());
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(previous(&path, &pods), Some(subnet));
        assert_eq!(previous(&path, &network("10.244.0.0/16")), None, "of another network");
        std::fs::write(&path, "FLANNEL_NETWORK=junk\n").unwrap();
        assert_eq!(previous(&path, &pods), None);
    }
}
