//! Single rows, rules and links of ours that a stranger deletes, changes or adds: those of netd, and those of the Services by either data path.
//!
//! Invariant: each is of something that is there at any time: the standing Service `s1`, or what every node has.

use anyhow::{Context, Result};

use super::network::briefly;
use super::{Heal, some_node};
use crate::ledger::Element;
use crate::options::Options;
use crate::world::World;

/// Whose rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// netd's, with every backend.
    Netd,
    /// netd's with VXLAN.
    Vxlan,
    /// ipvs-proxy's, in the mode nftables.
    Nftables,
    /// ipvs-proxy's, in the mode ipvs.
    Ipvs,
}

/// What a stranger does.
#[derive(Debug)]
pub(crate) struct Row {
    of: Of,
    pub(crate) what: &'static str,
    /// What of the node it disturbs.
    element: fn(String) -> Element,
    script: &'static str,
}

const fn row(of: Of, what: &'static str, element: fn(String) -> Element, script: &'static str) -> Row {
    Row { of, what, element, script }
}

use Element::{Node, Services, Translation, Uplink};
use Of::{Ipvs, Netd, Nftables, Vxlan};

#[rustfmt::skip]
const ROWS: [Row; 32] = [
    row(Netd, "all routes", Uplink, "ip route flush proto 121"),
    row(Netd, "forwarding", Node, "sysctl -qw net.ipv4.ip_forward=0"),
    row(Netd, "the subnet file", Uplink, "rm /run/flannel/subnet.env"),
    row(Netd, "rules of masquerade", Translation, "nft flush chain ip netd postrouting"),
    row(Netd, "the chain of masquerade", Translation, "nft flush chain ip netd postrouting; nft delete chain ip netd postrouting"),
    row(Vxlan, "a forwarding entry", Uplink, "card=$(bridge fdb show dev flannel.1 | grep -m1 ' dst ' | cut -d' ' -f1); bridge fdb del $card dev flannel.1"),
    row(Vxlan, "all neighbours", Uplink, "ip neigh flush dev flannel.1 nud permanent"),
    row(Vxlan, "the device's address", Uplink, "ip address flush dev flannel.1"),
    row(Vxlan, "the device", Uplink, "ip link delete flannel.1"),
    row(Nftables, "an endpoint", Services, "nft delete element ip ipvs-proxy endpoints '{ 192.168.0.11 . tcp . 80 . 0 }'"),
    row(Nftables, "an endpoint too many", Services, "nft add element ip ipvs-proxy endpoints '{ 192.168.0.11 . tcp . 80 . 99 : 172.7.250.9 . 80 }'"),
    row(Nftables, "all endpoints", Services, "nft flush map ip ipvs-proxy endpoints"),
    row(Nftables, "a Service", Services, "nft delete element ip ipvs-proxy services '{ 192.168.0.11 . udp . 80 }'"),
    row(Nftables, "all Services", Services, "nft flush map ip ipvs-proxy services"),
    row(Nftables, "a virtual address", Services, "nft delete element ip ipvs-proxy vips '{ 192.168.0.11 }'"),
    row(Nftables, "a node port", Services, "nft delete element ip ipvs-proxy node-ports '{ tcp . 30011 }'"),
    row(Nftables, "addresses of node ports", Services, "nft flush set ip ipvs-proxy node-port-addresses"),
    row(Nftables, "rules of Services", Services, "nft flush chain ip ipvs-proxy services"),
    row(Nftables, "a chain of Services", Services, "nft flush chain ip ipvs-proxy prerouting; nft delete chain ip ipvs-proxy prerouting"),
    row(Ipvs, "every virtual server", Services, "ipvsadm -C"),
    row(Ipvs, "a virtual server", Services, "ipvsadm -D -t 192.168.0.11:80"),
    row(Ipvs, "the virtual server of a node port", Services, "at=$(ipvsadm -Sn | grep -m1 -e '^-A -u 10[.]4[.]7[.].*:30011 ' | cut -d' ' -f3); ipvsadm -D -u $at"),
    row(Ipvs, "a virtual server's options", Services, "ipvsadm -E -u 192.168.0.11:80 -s rr -p 60"),
    row(Ipvs, "a real server", Services, "real=$(ipvsadm -Sn | grep -m1 -e '^-a -u 192[.]168[.]0[.]11:80 ' | cut -d' ' -f5); ipvsadm -d -u 192.168.0.11:80 -r $real"),
    row(Ipvs, "a real server too many", Services, "ipvsadm -a -t 192.168.0.11:80 -r 172.7.250.9:80 -m -w 1"),
    row(Ipvs, "a real server's weight", Services, "real=$(ipvsadm -Sn | grep -m1 -e '^-a -t 192[.]168[.]0[.]11:80 .* -w 1' | cut -d' ' -f5); ipvsadm -e -t 192.168.0.11:80 -r $real -m -w 0"),
    row(Ipvs, "a virtual address", Services, "ip address delete 192.168.0.11/32 dev kube-ipvs0"),
    row(Ipvs, "every virtual address", Services, "ip address flush dev kube-ipvs0"),
    row(Ipvs, "the local route of a virtual address", Services, "ip route delete local 192.168.0.11 table local"),
    row(Ipvs, "the device of virtual addresses", Services, "ip link delete kube-ipvs0"),
    row(Ipvs, "tracking by IPVS", Services, "sysctl -qw net.ipv4.vs.conntrack=0"),
    row(Ipvs, "rules of Services", Services, "nft flush chain ip ipvs-proxy services"),
];

impl Of {
    /// Whether it is netd's, and not the proxy's.
    fn is_of_netd(self) -> bool {
        matches!(self, Netd | Vxlan)
    }

    fn is_there(self, options: &Options) -> bool {
        match self {
            Netd => true,
            Vxlan => options.backend == "vxlan",
            Nftables => options.proxy == "nftables",
            Ipvs => options.proxy == "ipvs",
        }
    }
}

/// The rows that there are in a run.
pub(crate) fn all(options: &Options) -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(|row| row.of.is_there(options))
}

/// Those of one program.
fn of(world: &World, netd: bool) -> Vec<&'static Row> {
    all(&world.options).filter(|row| row.of.is_of_netd() == netd).collect()
}

/// Those that nobody has touched yet.
fn untouched(world: &World, netd: bool) -> Vec<&'static Row> {
    of(world, netd).into_iter().filter(|row| !world.deleted.contains_key(row.what)).collect()
}

/// Whether all of a program's rows have had their turn.
pub(super) fn had_their_turn(world: &World, netd: bool) -> bool {
    untouched(world, netd).is_empty()
}

/// One by chance, those that nobody has touched yet first.
pub(super) fn touch(world: &mut World, netd: bool) -> Result<(String, Option<Heal>)> {
    let name = some_node(world, false).context("a node")?;
    let mut rows = untouched(world, netd);
    if rows.is_empty() {
        rows = of(world, netd);
    }
    let row = world.choose(rows).context("a row")?;
    let cause = if netd { "row of netd deleted" } else { "row of a Service deleted" };
    briefly(world, cause, &name, &[(row.element)(name.clone())], row.script)?;
    *world.deleted.entry(row.what).or_default() += 1;
    Ok((format!("{} on {name}", row.what), None))
}
