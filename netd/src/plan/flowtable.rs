//! The short way for established flows of Pods: the nft table `inet netd`, when the network's configuration says `Flowtable: true`.
//!
//! A flow that is in the flowtable goes from link to link without meeting the rules of the forward and postrouting hooks, connection tracking
//! and the routing table. Which flows may go that way, and why:
//!
//! 1. Nothing between Pods of this node: their bridge carries it, and with br_netfilter its packets come by here all the same.
//! 2. Only what comes by in the direction of the connection's first packet. What IPVS serves does not: it takes requests at the input hook
//!    and translates answers at the forward hook, which they would no longer reach.
//! 3. Only established connections of Pods, and behind every other chain of the hook: whoever denies a packet has done so before.
//!
//! Kernels differ in what is to be named, and in what a flow does when its route changes ([`Flowtables`]).
//!
//! Invariants: the table is there only on a node that has Pods and whose kernel has flows follow their routes, and names links that are there or whose absence does no harm; it is a row apart from the masquerade rules,
//! so a kernel without flowtables refuses nothing else.

use std::collections::{BTreeMap, BTreeSet};

use netstate::nft::{
    Chain, ChainKind, CtDirection, CtState, Family, Flowtable, Hook, Match, Name, Op, Policy, Row, RowKey, Rule,
    Ruleset, Statement, TableKey, Verdict, priority,
};
use netstate::{IfName, IpFamily, Prefix, Release};

use super::{Changes, Planner, Tables};

/// The most links that a flowtable names: the kernel refuses 256 (NFT_NETDEVICE_MAX, include/net/netfilter/nf_tables.h).
const MOST_LINKS: usize = 255;

/// Name of the flowtable.
const FLOWS: Name = Name::literal("pods");

/// One family of this node.
#[derive(Debug, Clone, Copy)]
struct Pods {
    /// The Pod network.
    network: Prefix,
    /// This node's part of it.
    own: Prefix,
}

/// What the flowtables of a kernel are good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flowtables {
    /// A flow keeps the route that it began with, whatever becomes of that.
    KeepRoutes,
    /// Flows go to a bridge and come from one; a name of a link that is gone is refused, with the whole table.
    OfBridges,
    /// Flows go to the link by which a packet leaves in the end, a bridge's port, where that is named (`nft_dev_path_info`); names of links that
    /// are gone do no harm.
    OfPorts,
}

impl Flowtables {
    /// The first release that has flows leave when their routes change (`nf_flow_has_stale_dst`, net/netfilter/nf_flow_table_core.c).
    const FOLLOW_ROUTES: Release = Release(5, 13, 0);

    /// Those of a kernel of `release`, which takes names ahead of their links or does not.
    pub(crate) fn of(release: Option<Release>, takes_names_ahead: bool) -> Self {
        match release {
            Some(release) if release < Self::FOLLOW_ROUTES => Self::KeepRoutes,
            _ if takes_names_ahead => Self::OfPorts,
            _ => Self::OfBridges,
        }
    }
}

/// The links by which this node's Pods are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodLinks {
    /// Bridges with an address of the node's part of the Pod network.
    pub bridges: BTreeSet<IfName>,
    /// Links below these and below the interface towards the other nodes: ports of a bridge, what a VLAN stands on.
    pub below: BTreeSet<IfName>,
}

impl PodLinks {
    /// All that a flowtable names beside `others`; flows of links behind [`MOST_LINKS`] keep the ordinary way.
    fn named(&self, kind: Flowtables, others: impl Iterator<Item = IfName>) -> BTreeSet<IfName> {
        let mut all: BTreeSet<IfName> = others.chain(self.bridges.iter().cloned()).collect();
        let room = if kind == Flowtables::OfPorts { MOST_LINKS.saturating_sub(all.len()) } else { 0 };
        all.extend(self.below.iter().take(room).cloned());
        all
    }
}

impl Planner {
    /// Plans anew for the links that this node's Pods are reached by now.
    pub(crate) fn set_pod_links(&mut self, links: PodLinks) -> Changes {
        let before = self.flowtable();
        self.pod_links = links;
        let rows = |ingress| Tables { ingress, ..Tables::default() };
        Changes::between(rows(before), rows(self.flowtable()))
    }

    /// True when it matters which bridges and ports there are.
    #[must_use]
    pub(crate) const fn has_flowtable(&self) -> bool {
        self.network.flowtable
    }

    /// Why the network's flowtable is not made, if that is so.
    pub(super) fn flowtable_remark(&self) -> Option<String> {
        let is_kept_off = self.network.flowtable && self.local.flowtables == Flowtables::KeepRoutes;
        let Release(major, minor, _) = Flowtables::FOLLOW_ROUTES;
        is_kept_off.then(|| {
            format!("Flowtable: packets take the ordinary way, because flows of kernels before {major}.{minor} keep routes that have changed")
        })
    }

    /// The table, where the network has one and this node has Pods.
    pub(super) fn flowtable(&self) -> BTreeMap<RowKey, Row> {
        let kind = self.local.flowtables;
        if !self.network.flowtable || kind == Flowtables::KeepRoutes || self.pod_links.bridges.is_empty() {
            return BTreeMap::new();
        }
        let families: Vec<IpFamily> = self.local.places.families().collect();
        let tunnels = self.backends().flat_map(|backend| families.iter().filter_map(|family| backend.device(*family)));
        let devices = self.pod_links.named(kind, tunnels.chain([self.local.interface.clone()]));
        let pods = |own: Prefix| Some(Pods { network: self.network.pool(&own)?.network, own });
        rows(&self.masquerade.table, devices, &self.local.subnets().filter_map(pods).collect::<Vec<_>>())
    }
}

/// The table `table` for flows that arrive on `devices`.
fn rows(table: &Name, devices: BTreeSet<IfName>, families: &[Pods]) -> BTreeMap<RowKey, Row> {
    let mut ruleset = Ruleset::new(TableKey { family: Family::Inet, name: table.clone() });
    ruleset.table.flowtables.insert(FLOWS, Flowtable::on(devices));
    let mut chain = Chain::base(ChainKind::Filter, Hook::Forward, priority::LAST, Policy::Accept);
    let on_the_bridge = families.iter().map(|pods| {
        let (from, to) = (Match::Saddr(Op::Is, pods.own), Match::Daddr(Op::Is, pods.own));
        Rule::new().when(from).when(to).then(Verdict::Return)
    });
    let offloaded = |of_pods: Match| {
        let established = Rule::new().when(Match::CtState(CtState::ESTABLISHED));
        established.when(Match::CtDirection(CtDirection::Original)).when(of_pods).then(Statement::Offload(FLOWS))
    };
    let short_way = families
        .iter()
        .flat_map(|pods| [Match::Saddr(Op::Is, pods.network), Match::Daddr(Op::Is, pods.network)].map(offloaded));
    chain.rules = on_the_bridge.chain(short_way).collect();
    ruleset.table.chains.insert(Name::literal("forward"), chain);
    ruleset.into_rows().collect()
}

#[cfg(test)]
mod tests {
    use netstate::PerFamily;

    use super::*;
    use crate::format::net_conf::NetConf;
    use crate::plan::{LocalNode, Masquerade};

    fn links(bridge: &str, below: &[&str]) -> PodLinks {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        PodLinks { bridges: names(&[bridge]), below: names(below) }
    }

    #[test]
    fn ports_are_named_as_far_as_the_kernel_takes_names() {
        let names = |range: std::ops::Range<u32>| range.map(|at| format!("veth{at:03}").parse().unwrap()).collect();
        let links = |below| PodLinks { below, ..links("cbr0", &[]) };
        let others = || ["eth0", "flannel.1"].map(|name| name.parse().unwrap()).into_iter();
        let only_bridge = links(names(0..2)).named(Flowtables::OfBridges, others());
        assert_eq!(only_bridge.iter().map(IfName::as_str).collect::<Vec<_>>(), ["cbr0", "eth0", "flannel.1"]);
        let few = links(names(0..2)).named(Flowtables::OfPorts, others());
        assert_eq!(
            few.iter().map(IfName::as_str).collect::<Vec<_>>(),
            ["cbr0", "eth0", "flannel.1", "veth000", "veth001"]
        );
        let many = links(names(0..600)).named(Flowtables::OfPorts, others());
        assert_eq!((many.len(), many.last().unwrap().as_str()), (255, "veth251"));
    }

    #[test]
    fn flows_that_keep_their_routes_are_left_out_and_that_is_remarked() {
        let of = |release: &str, ahead| Flowtables::of(Release::of(release), ahead);
        assert_eq!(of("5.10.262-lab", false), Flowtables::KeepRoutes);
        assert_eq!([of("5.13.0", false), of("6.12.1", false), of("?", false)], [Flowtables::OfBridges; 3]);
        assert_eq!(of("7.3.4", true), Flowtables::OfPorts);
        let text = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"},"Flowtable":true}"#;
        let network = NetConf::parse(text).unwrap().network;
        for (flowtables, tables, remarks) in [(Flowtables::KeepRoutes, 0, 1), (Flowtables::OfPorts, 1, 0)] {
            let plain = LocalNode::plain(PerFamily::default(), "eth0".parse().unwrap());
            let local = LocalNode { flowtables, ..plain };
            let mut planner = Planner::new(network.clone(), Masquerade::MASQ, local);
            planner.set_pod_links(links("cbr0", &["veth1"]));
            assert_eq!(planner.flowtable().len(), tables);
            assert_eq!(planner.node_remarks().filter(|text| text.contains("before 5.13")).count(), remarks);
        }
    }

    #[test]
    fn rules_read_as_an_operator_expects_them() {
        let pods = |network: &str, own: &str| Pods { network: network.parse().unwrap(), own: own.parse().unwrap() };
        let families = [pods("172.7.0.0/16", "172.7.21.0/24"), pods("fd00:7::/48", "fd00:7:0:21::/64")];
        let devices = ["flannel.1", "cbr0", "eth0"].map(|name| name.parse().unwrap()).into();
        let (key, row) = rows(&Name::literal("netd"), devices, &families).pop_first().unwrap();
        let (RowKey::Table(key), Row::Table(table)) = (key, row) else { panic!("no table") };
        let text = Ruleset { table: *table, ..Ruleset::new(key) }.render();
        let expected = "\
table inet netd {
\tflowtable pods {
\t\thook ingress priority filter
\t\tdevices = { cbr0, eth0, flannel.1 }
\t}

\tchain forward {
\t\ttype filter hook forward priority 2147483647; policy accept;
\t\tip saddr 172.7.21.0/24 ip daddr 172.7.21.0/24 return
\t\tip6 saddr fd00:7:0:21::/64 ip6 daddr fd00:7:0:21::/64 return
\t\tct state established ct direction original ip saddr 172.7.0.0/16 flow add @pods
\t\tct state established ct direction original ip daddr 172.7.0.0/16 flow add @pods
\t\tct state established ct direction original ip6 saddr fd00:7::/48 flow add @pods
\t\tct state established ct direction original ip6 daddr fd00:7::/48 flow add @pods
\t}
}
";
        assert_eq!(text, expected);
    }
}
