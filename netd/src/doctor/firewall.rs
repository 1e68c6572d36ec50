//! Rules that deny packets: those that close the node to what other nodes send, those that dropped something while probes were
//! under way, and those of iptables-legacy.
//!
//! Other packets may have met the second, so they are notes unless a probe was lost.

use netstate::Prefix;
use netstate::nft::{Family, Name};

use super::entrance::{Closed, Denier, Entrance, Firewall};
use super::{Facts, Trouble};

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let lost = facts.paths.iter().any(|(_, paths)| !paths.direct.arrived() || !paths.carries());
    let dropped = |(rule, packets): &(String, u64)| {
        let found = format!("{rule} dropped {packets} packets during the probes");
        let fix = "if these are the nodes' or the Pods', put an accept in front of it";
        if lost { Trouble::problem(found, fix) } else { Trouble::note(found, fix) }
    };
    let legacy = facts.legacy.iter().map(|advice| Trouble::problem(advice.found.clone(), advice.fix.clone()));
    facts.drops.iter().map(dropped).chain(facts.closed.iter().map(entrance)).chain(legacy).collect()
}

fn entrance(closed: &Closed) -> Trouble {
    let Closed { entrance, denied, nodes, device, .. } = closed;
    let first = nodes.first().map(ToString::to_string).unwrap_or_default();
    let who = match nodes.len() {
        0 | 1 => first,
        several => format!("{first} and {} more", several - 1),
    };
    let found = format!("{denied} denies {entrance} from {who}");
    match entrance {
        Entrance::Probes(_) => Trouble::note(
            format!("{found}; Pods need none of them"),
            format!("for `netd doctor` and `netd trace` of the other nodes: {}", opening(closed)),
        ),
        Entrance::Udp(_) | Entrance::Ipip if device.as_str().starts_with("flannel.") && *entrance != Entrance::Ipip => {
            Trouble::problem(found, opening(closed))
        }
        // The same two ends both ways: the kernel takes what comes for an answer while it knows of a question.
        Entrance::Udp(_) | Entrance::Ipip => Trouble::problem(
            format!("{found}; it passes only for a while after this node has sent something"),
            opening(closed),
        ),
    }
}

/// How the entrance is opened to the other nodes in the firewall that denies it.
fn opening(closed: &Closed) -> String {
    let Closed { entrance, denied, network, firewall, .. } = closed;
    match firewall {
        Some(Firewall::Firewalld) => opening_firewalld(closed),
        Some(Firewall::Ufw) => match entrance.port() {
            Some(port) => format!("ufw allow from {network} to any port {port} proto udp"),
            None => format!(
                "sed -i '/^COMMIT/i -A ufw-before-input -p 4 -s {network} -j ACCEPT' /etc/ufw/before.rules && ufw reload"
            ),
        },
        None => opening_rules(*entrance, denied, *network),
    }
}

fn opening_firewalld(closed: &Closed) -> String {
    let Closed { entrance, denied, network, .. } = closed;
    let family = if network.is_ipv4() { "ipv4" } else { "ipv6" };
    let what = match entrance.port() {
        Some(port) => format!(r#"port port="{port}" protocol="udp""#),
        None => r#"protocol value="4""#.to_owned(),
    };
    let chains = match denied {
        Denier::Nft(denied) => [Some(denied.chain.as_str()), denied.undecided.as_ref().map(Name::as_str)],
        Denier::Legacy(denied) => [Some(denied.chain), None],
    };
    let zone = chains.into_iter().flatten().find_map(zone).map(|zone| format!(" --zone={zone}")).unwrap_or_default();
    format!(
        "firewall-cmd --permanent{zone} --add-rich-rule='rule family=\"{family}\" source address=\"{network}\" {what} accept' \
         && firewall-cmd --reload"
    )
}

fn opening_rules(entrance: Entrance, denied: &Denier, network: Prefix) -> String {
    let denied = match denied {
        Denier::Nft(denied) => denied,
        Denier::Legacy(denied) => {
            let what = entrance.port().map_or("-p 4".to_owned(), |port| format!("-p udp --dport {port}"));
            return format!("{} -I {} {what} -s {network} -j ACCEPT{SAVE}", denied.command(), denied.chain);
        }
    };
    let base = denied.base.as_str();
    if matches!(denied.table.family, Family::Ip | Family::Ip6) && base.bytes().all(|byte| byte.is_ascii_uppercase()) {
        let command = if network.is_ipv4() { "iptables" } else { "ip6tables" };
        let what = entrance.port().map_or("-p 4".to_owned(), |port| format!("-p udp --dport {port}"));
        let table = denied.table.name.as_str();
        return format!("{command} -t {table} -I {base} {what} -s {network} -j ACCEPT{SAVE}");
    }
    let what = entrance.port().map_or("meta l4proto 4".to_owned(), |port| format!("udp dport {port}"));
    let word = if network.is_ipv4() { "ip" } else { "ip6" };
    format!("nft insert rule {} {base} {word} saddr {network} {what} accept{SAVE}", denied.table)
}

const SAVE: &str = ", and the same where your rules are loaded from at boot";

/// The zone of one of firewalld's chains for what is for the host: `filter_IN_public`, `filter_IN_public_deny`, in tables of
/// iptables `IN_public`. As of 2.3 a zone's last denial stands behind the jump to the zone's chain.
fn zone(chain: &str) -> Option<&str> {
    let chain = chain.strip_prefix("filter_").unwrap_or(chain);
    let zone = chain.strip_prefix("IN_").filter(|rest| !rest.starts_with("policy_"))?;
    let parts = ["_pre", "_log", "_deny", "_allow", "_post"];
    Some(parts.iter().find_map(|part| zone.strip_suffix(part)).unwrap_or(zone))
}

#[cfg(test)]
mod tests {
    use kernel::nft::arrival::Denied;
    use netstate::IpFamily;
    use netstate::nft::TableKey;

    use super::*;

    fn closed(table: (Family, &str), chain: &str, entrance: Entrance) -> Closed {
        let table = TableKey { family: table.0, name: Name::new(table.1).unwrap() };
        let (chain, undecided) = chain.split_once(' ').map_or((chain, None), |(chain, zone)| (chain, Some(zone)));
        let base = Name::new(if chain.starts_with("filter_IN_") { "filter_INPUT" } else { chain }).unwrap();
        let undecided = undecided.map(|zone| Name::new(zone).unwrap());
        let network = "10.4.7.0/24".parse().unwrap();
        let device = "flannel.1".parse().unwrap();
        let firewall = (table.name.as_str() == "firewalld").then_some(Firewall::Firewalld);
        let denied = Denier::Nft(Denied { table, base, chain: Name::new(chain).unwrap(), undecided, rule: None });
        Closed { entrance, denied, firewall, device, nodes: [].into(), network }
    }

    #[test]
    fn each_firewall_is_opened_by_its_own_tool_to_the_nodes_only() {
        let udp = Entrance::Udp(8472);
        for (closed, fix) in [
            (
                closed((Family::Inet, "firewalld"), "filter_IN_drop", udp),
                r#"firewall-cmd --permanent --zone=drop --add-rich-rule='rule family="ipv4" source address="10.4.7.0/24" port port="8472" protocol="udp" accept' && firewall-cmd --reload"#,
            ),
            (
                closed((Family::Inet, "firewalld"), "filter_INPUT_POLICIES filter_IN_work", udp),
                r#"firewall-cmd --permanent --zone=work --add-rich-rule='rule family="ipv4" source address="10.4.7.0/24" port port="8472" protocol="udp" accept' && firewall-cmd --reload"#,
            ),
            (
                closed((Family::Inet, "firewalld"), "filter_IN_public_deny", Entrance::Ipip),
                r#"firewall-cmd --permanent --zone=public --add-rich-rule='rule family="ipv4" source address="10.4.7.0/24" protocol value="4" accept' && firewall-cmd --reload"#,
            ),
            (
                Closed {
                    firewall: Some(Firewall::Firewalld),
                    ..closed((Family::Ip, "filter"), "INPUT_POLICIES IN_drop", udp)
                },
                r#"firewall-cmd --permanent --zone=drop --add-rich-rule='rule family="ipv4" source address="10.4.7.0/24" port port="8472" protocol="udp" accept' && firewall-cmd --reload"#,
            ),
            (
                Closed { firewall: Some(Firewall::Ufw), ..closed((Family::Ip, "filter"), "INPUT", udp) },
                "ufw allow from 10.4.7.0/24 to any port 8472 proto udp",
            ),
            (
                closed((Family::Ip, "filter"), "INPUT", Entrance::Ipip),
                "iptables -t filter -I INPUT -p 4 -s 10.4.7.0/24 -j ACCEPT, and the same where your rules are loaded from at boot",
            ),
            (
                closed((Family::Inet, "filter"), "input", udp),
                "nft insert rule inet filter input ip saddr 10.4.7.0/24 udp dport 8472 accept, and the same where your rules \
                 are loaded from at boot",
            ),
        ] {
            assert_eq!(opening(&closed), fix);
        }
        let legacy = |table, chain| {
            Denier::Legacy(kernel::legacy::arrival::Denied { family: IpFamily::V4, table, chain, rule: Some(3) })
        };
        let old = Closed { denied: legacy("filter", "INPUT"), ..closed((Family::Ip, "filter"), "INPUT", udp) };
        let fix = "iptables-legacy -I INPUT -p udp --dport 8472 -s 10.4.7.0/24 -j ACCEPT, and the same where your rules are \
                   loaded from at boot";
        assert_eq!((opening(&old).as_str(), old.denied.to_string().as_str()), (fix, "rule 3 of iptables-legacy INPUT"));
        let early = Closed { denied: legacy("raw", "PREROUTING"), ..old };
        assert!(opening(&early).starts_with("iptables-legacy -t raw -I PREROUTING -p udp --dport 8472 -s 10.4.7.0/24"));
        assert_eq!(early.denied.to_string(), "rule 3 of iptables-legacy -t raw PREROUTING");
        let six = Closed { network: "fd00:4:7::/64".parse().unwrap(), ..closed((Family::Ip6, "filter"), "INPUT", udp) };
        assert!(opening(&six).starts_with("ip6tables -t filter -I INPUT -p udp --dport 8472 -s fd00:4:7::/64"));
    }
}
