//! What the chain that ran here before us called the things it made for a container.
//!
//! | made by | for | what |
//! |---|---|---|
//! | bridge, `ipMasq` | iptables | chain `CNI-<hash>` of table nat, and a jump to it in POSTROUTING |
//! | bridge, `ipMasq` | nftables | rules of table `inet cni_plugins_masquerade`, by comment |
//! | portmap | iptables | chain `CNI-DN-<hash>` of table nat, before 0.7 `CNI-SN-<hash>`, and jumps in CNI-HOSTPORT-DNAT |
//! | portmap | nftables | rules of tables `ip cni_hostport` and `ip6 cni_hostport`, by comment |
//!
//! The hashes are SHA-512 in hexadecimal of network and container, the whole name cut to 28 bytes
//! (plugins/pkg/utils/utils.go `FormatChainName`, `FormatHashWithPrefix`). Invariant: a name or comment is one
//! container's of one network; only `cni_hostport` does not know the network.

use netstate::nft::{Family, Name, TableKey};
use sha2::{Digest, Sha512};

use crate::protocol::attachment::{Attachment, ContainerId};

/// Bytes of a chain's name (utils.go `maxChainLength`).
const CHAIN_MAX: usize = 28;
/// Hexadecimal digits of a hash in a comment (pkg/ip/ipmasq_nftables_linux.go).
const COMMENT_HASH: usize = 16;

fn hashed(prefix: &str, text: &str, max: usize) -> String {
    let digest = Sha512::digest(text.as_bytes());
    let mut name = digest.iter().fold(prefix.to_owned(), |name, byte| format!("{name}{byte:02x}"));
    name.truncate(max);
    name
}

/// The chains of `container` in iptables' table nat: masquerade, host ports, and host ports before 0.7.
#[must_use]
pub(crate) fn chains(network: &str, container: &ContainerId) -> [Name; 3] {
    let of = |prefix| Name::observed(hashed(prefix, &format!("{network}{container}"), CHAIN_MAX));
    [of("CNI-"), of("CNI-DN-"), of("CNI-SN-")]
}

/// What the comment of a rule in `inet cni_plugins_masquerade` begins with when it is about `network`.
#[must_use]
pub(crate) fn masquerade_of_network(network: &str) -> String {
    format!("{}-", hashed("", network, COMMENT_HASH))
}

/// What the comment of a rule in `inet cni_plugins_masquerade` begins with when it is about `attachment`.
#[must_use]
pub(crate) fn masquerade_of(network: &str, attachment: &Attachment) -> String {
    let Attachment { container, ifname, .. } = attachment;
    let own = hashed("", &format!("{ifname}:{container}"), COMMENT_HASH);
    format!("{}{own}", masquerade_of_network(network))
}

/// The tables of iptables-nft in which the chains are.
#[must_use]
pub(crate) fn nat_tables() -> [TableKey; 2] {
    let name = Name::literal("nat");
    [TableKey { family: Family::Ip, name: name.clone() }, TableKey { family: Family::Ip6, name }]
}

/// portmap's own tables.
#[must_use]
pub(crate) fn hostport_tables() -> [TableKey; 2] {
    let name = Name::literal("cni_hostport");
    [TableKey { family: Family::Ip, name: name.clone() }, TableKey { family: Family::Ip6, name }]
}

/// bridge's own table.
#[must_use]
pub(crate) fn masquerade_table() -> TableKey {
    TableKey { family: Family::Inet, name: Name::literal("cni_plugins_masquerade") }
}

/// True for a chain that was made for one container.
#[must_use]
pub(crate) fn is_chain(name: &Name) -> bool {
    let hash = name
        .as_str()
        .strip_prefix("CNI-")
        .map(|rest| rest.strip_prefix("DN-").or_else(|| rest.strip_prefix("SN-")).unwrap_or(rest));
    name.as_str().len() == CHAIN_MAX
        && hash.is_some_and(|hash| hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// Network and container in the comment of a rule that leads to such a chain: `name: "<network>" id: "<container>"`,
/// of portmap with `dnat` before it. `None` for anything else, and for a comment that was cut.
#[must_use]
pub(crate) fn read_comment(comment: &str) -> Option<(&str, ContainerId)> {
    let (_, rest) = comment.split_once("name: \"")?;
    let (network, rest) = rest.split_once('"')?;
    let (container, _) = rest.strip_prefix(" id: \"")?.split_once('"')?;
    Some((network, ContainerId::new(container)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::IfName;

    fn container(id: &str) -> ContainerId {
        ContainerId::new(id).unwrap()
    }

    #[test]
    fn names_are_those_of_the_reference_plugins() {
        // pkg/utils/utils_test.go: FormatChainName("test", "1234") and with prefix "PREFIX-".
        assert_eq!(hashed("CNI-", "test1234", CHAIN_MAX), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(hashed("CNI-PREFIX-", "test1234", CHAIN_MAX), "CNI-PREFIX-2bbe0c48b91a7d1b8");
        for name in chains("cbr0", &container("web-1")) {
            assert!(is_chain(&name), "{name}");
        }
    }

    #[test]
    fn chains_of_all_containers_are_nobodys() {
        for name in ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-ADMIN", "KUBE-SVC-0123456789abcdef0123", "CNI-"]
        {
            assert!(!is_chain(&Name::observed(name)), "{name}");
        }
    }

    #[test]
    fn comments_name_network_and_container() {
        let read = |text: &str| read_comment(text).map(|(network, id)| format!("{network} {id}"));
        assert_eq!(read(r#"name: "cbr0" id: "web-1""#).as_deref(), Some("cbr0 web-1"));
        assert_eq!(read(r#"dnat name: "cbr0" id: "web-1""#).as_deref(), Some("cbr0 web-1"));
        for other in ["", "CNI portfwd requiring masquerade", r#"name: "cbr0" id: "web-"#, r#"name: "cbr0" id: "a/b""#]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn masquerade_comments_distinguish_networks() {
        let attachment = Attachment::new(container("web-1"), IfName::new("eth0").unwrap());
        let comment = masquerade_of("cbr0", &attachment);
        assert_eq!(comment.len(), 33);
        assert!(comment.starts_with(&masquerade_of_network("cbr0")));
        assert!(!comment.starts_with(&masquerade_of_network("cbr1")));
    }
}
