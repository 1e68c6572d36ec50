//! `ipMasq`: what leaves the Pod networks takes this node's address.
//!
//! One static rule per Pod subnet in a table of the network, `inet netd-masq-<network>`; nothing per Pod, so there is
//! nothing to remove with a Pod. Wanted only where the daemon does not masquerade (`FLANNEL_IPMASQ=false`). Unlike the
//! bridge plugin's rules, which exempt the Pod's own subnet alone, these let traffic to the Pods of other nodes keep
//! its source.

use netstate::nft::{
    Chain, ChainKind, Family, Hook, Match, Name, Op, Policy, Rule, Ruleset, Statement, TableKey, priority,
};
use netstate::{IpFamily, Prefix};

/// The table of `network`: `subnets` are masqueraded except towards `networks`, themselves and multicast groups.
/// `None` for a name that nftables cannot hold.
#[must_use]
pub(crate) fn ruleset(network: &str, subnets: &[Prefix], networks: &[Prefix]) -> Option<Ruleset> {
    let name = Name::new(format!("netd-masq-{network}")).ok()?;
    let mut chain = Chain::base(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    for subnet in subnets {
        let same_family = |net: &&Prefix| net.family() == subnet.family();
        let own = (!networks.iter().any(|net| net.covers(subnet))).then_some(subnet);
        let mut rule = Rule::new().when(Match::Saddr(Op::Is, *subnet));
        for exempt in own.into_iter().chain(networks.iter().filter(same_family)).chain([&multicast(subnet.family())]) {
            rule = rule.when(Match::Daddr(Op::IsNot, *exempt));
        }
        chain.rules.push(rule.then(Statement::Masquerade { fully_random: true }));
    }
    let mut ruleset = Ruleset::new(TableKey { family: Family::Inet, name });
    ruleset.table.chains.insert(Name::literal("postrouting"), chain);
    Some(ruleset)
}

/// Groups, which have no one address.
const fn multicast(family: IpFamily) -> Prefix {
    match family {
        IpFamily::V4 => Prefix::v4_literal([224, 0, 0, 0], 4),
        IpFamily::V6 => Prefix::v6_literal([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(subnets: &[&str], networks: &[&str]) -> String {
        let parse = |list: &[&str]| list.iter().map(|p| p.parse().unwrap()).collect::<Vec<Prefix>>();
        ruleset("cbr0", &parse(subnets), &parse(networks)).unwrap().render()
    }

    #[test]
    fn golden() {
        assert_eq!(
            text(&["172.7.21.0/24", "fd00:7:0:21::/64"], &["172.7.0.0/16", "fd00:7::/48"]),
            "table inet netd-masq-cbr0 {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tip saddr 172.7.21.0/24 ip daddr != 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n\
             \t\tip6 saddr fd00:7:0:21::/64 ip6 daddr != fd00:7::/48 ip6 daddr != ff00::/8 masquerade fully-random\n\t}\n}\n"
        );
    }

    #[test]
    fn a_subnet_outside_of_all_networks_exempts_itself() {
        assert!(text(&["10.1.0.0/24"], &["172.7.0.0/16"]).contains("ip daddr != 10.1.0.0/24 ip daddr != 172.7.0.0/16"));
    }
}
