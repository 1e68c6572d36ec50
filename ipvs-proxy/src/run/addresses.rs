//! This node as it is: its networks, its kernel's parameters and tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use daemon::monitors::Interests;
use kernel::address::Addresses;
use kernel::conntrack::Conntrack;
use kernel::ipvs::{Ipvs, IpvsTable, Timeouts};
use kernel::link::Links;
use kernel::nft::{Nft, Tables as NftTables};
use kernel::query::{Interface, Query};
use kernel::route::Routes;
use kernel::sysctl::Sysctls;
use kernel::watch::Interest;
use kernel::writer::{Subject, Writers};
use kernel::{Cause, KernelError, Rtnl};
use netstate::route::{PROXY_ROUTE_PROTOCOL, TABLE_LOCAL};
use netstate::{IfName, InterfaceAddress, IpFamily, Prefix, Release, SysctlKey};

use super::counted::{Counted, Numbers};
use super::flows::sweep::Background;
use super::guarded::Guarded;
use super::routed::Routed;
use super::spared::Spared;
use super::targets::{Balance, Targets};
use super::{forward, lock};
use crate::command::config::Networks;
use crate::dataplane::{self, local, vip};
use crate::plan::networks::NodeNetwork;

/// The networks that this node is in, read from the kernel.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) async fn networks(pods: Networks) -> Result<Vec<NodeNetwork>, KernelError> {
    Ok(own_networks(&Query::open()?.interfaces().await?, pods))
}

/// The networks that this node is in: those of its addresses, without loopback, link-local and single addresses, and without
/// the Pod network's own bridges and tunnels, whose addresses are Pod addresses.
fn own_networks(interfaces: &[Interface], pods: Networks) -> Vec<NodeNetwork> {
    let of = |link: &Interface| {
        let (name, of_pods) = (link.name.clone(), IN_POD_NETWORKS.contains(&link.kind.as_str()));
        let network = move |InterfaceAddress { addr, len, .. }: &InterfaceAddress| {
            let network = Prefix::new(*addr, *len).ok()?;
            let family = IpFamily::of(*addr);
            let single = *len == family.width() || addr.is_loopback() || is_link_local(*addr);
            let covers = pods.get(family).is_some_and(|pods| pods.covers(&network));
            let ours = name.as_str() == vip::LINK_NAME || of_pods && covers;
            (!single && !ours).then(|| NodeNetwork { link: name.to_string(), addr: *addr, network })
        };
        link.addresses.iter().filter_map(network).collect::<Vec<_>>()
    };
    let found: BTreeSet<_> = interfaces.iter().flat_map(of).collect();
    found.into_iter().collect()
}

/// Addresses of one link only (RFC 4291 §2.5.6), which every link has.
const fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// Kinds of links that a Pod network is made of: with an address inside it they are no uplink.
const IN_POD_NETWORKS: [&str; 8] = ["bridge", "vxlan", "dummy", "wireguard", "ipip", "gre", "geneve", "sit"];

/// True when the kernel has the family.
pub(super) fn is_supported(family: IpFamily) -> bool {
    family.is_v4() || Path::new("/proc/sys/net/ipv6").is_dir()
}

/// What every data path needs: packets enter and leave by different interfaces.
const fn forwarding(family: IpFamily) -> (&'static str, &'static str) {
    match family {
        IpFamily::V4 => ("net/ipv4/ip_forward", "1"),
        IpFamily::V6 => ("net/ipv6/conf/all/forwarding", "1"),
    }
}

/// The parameters that the nftables data path needs to carry these families.
#[must_use]
pub(crate) fn sysctls_without_ipvs(families: &[IpFamily]) -> BTreeMap<SysctlKey, String> {
    parameters(families.iter().map(|family| forwarding(*family)).collect())
}

fn parameters(wanted: Vec<(&str, &str)>) -> BTreeMap<SysctlKey, String> {
    wanted.into_iter().filter_map(|(key, value)| Some((key.parse().ok()?, value.to_owned()))).collect()
}

/// The parameters that IPVS behind conntrack needs on a kernel of this release (`uname -r`).
#[must_use]
pub(crate) fn sysctls(release: &str, families: &[IpFamily]) -> BTreeMap<SysctlKey, String> {
    let mut wanted = vec![
        // Balanced connections are tracked, so that they can be masqueraded.
        ("net/ipv4/vs/conntrack", "1"),
        // A packet for an endpoint that was removed ends its connection, and the next one is balanced anew.
        ("net/ipv4/vs/expire_nodest_conn", "1"),
        ("net/ipv4/vs/expire_quiescent_template", "1"),
    ];
    wanted.extend(families.iter().map(|family| forwarding(*family)));
    if reuse_costs_a_second(release) {
        wanted.push(("net/ipv4/vs/conn_reuse_mode", "0"));
    }
    parameters(wanted)
}

/// Linux 4.1 to 5.8 drop the first packet of a connection whose port was used lately (fixed in 5.9).
fn reuse_costs_a_second(release: &str) -> bool {
    Release::of(release).is_some_and(|release| (Release(4, 1, 0)..Release(5, 9, 0)).contains(&release))
}

/// Bridged packets pass the hooks of their family only with this: without it the answer of a Pod to another Pod on the same bridge goes
/// past what must rewrite it.
///
/// Returns the advice for the operator, if something is missing. The parameter exists once br_netfilter is loaded.
#[must_use]
pub(crate) fn bridge_advice(family: IpFamily) -> Option<String> {
    let name = match family {
        IpFamily::V4 => "net/bridge/bridge-nf-call-iptables",
        IpFamily::V6 => "net/bridge/bridge-nf-call-ip6tables",
    };
    let key: SysctlKey = name.parse().ok()?;
    match kernel::sysctl::read(&key) {
        Ok(value) if value == "1" => None,
        Ok(_) => {
            Some(format!("{name} is 0: Pods on one bridge cannot reach each other through a Service; set it to 1"))
        }
        Err(_) => Some(format!(
            "{name} does not exist: Pods on one bridge cannot reach each other through a Service; load br_netfilter"
        )),
    }
}

/// Sets the time-outs that are not 0 and differ.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn set_timeouts(ipvs: &mut Ipvs, wanted: Timeouts) -> Result<(), KernelError> {
    let have = ipvs.timeouts()?;
    let differs = |wanted, have| wanted != 0 && wanted != have;
    if differs(wanted.tcp, have.tcp) || differs(wanted.tcp_fin, have.tcp_fin) || differs(wanted.udp, have.udp) {
        ipvs.set_timeouts(wanted)?;
    }
    Ok(())
}

/// The virtual servers behind `ipvs`, for these families.
pub(crate) fn servers(ipvs: Ipvs, mut families: impl Iterator<Item = IpFamily>) -> IpvsTable {
    let table = IpvsTable::new(ipvs, []);
    if families.any(|family| family == IpFamily::V6) { table } else { table.without_ipv6() }
}

/// Opens every table of the calling thread's network namespace for a data path; addresses of `link` in `excluded` are others'.
///
/// # Errors
/// When the kernel refuses a conversation.
pub(crate) fn targets(
    servers: Option<IpvsTable>,
    (link, excluded): (&IfName, &[Prefix]),
    sysctls: &BTreeMap<SysctlKey, String>,
    numbers: &Numbers,
) -> Result<(Targets, Interests), KernelError> {
    let (nft, foreign) = (Nft::open()?, Nft::open()?);
    let writers = Writers::default();
    let mut interests = Interests {
        // A node that starts Pods announces a thousand changes of links that are none of ours.
        rtnl: Interest {
            devices: Some(BTreeSet::new()),
            links: BTreeSet::from([link.clone(), local::LINK]),
            routes: Some(Arc::new(local::is_of_interest)),
            writers: writers.clone(),
            ..Interest::default()
        },
        nft: BTreeSet::from([nft.port()?, foreign.port()?]),
    };
    let forward = forward::stage(foreign).watched(writers.clone());
    let routes = Rtnl::open()?;
    interests.rtnl.own.insert(routes.port()?);
    let balance = servers.map(|servers| balance(servers, (link, excluded), &mut interests.rtnl)).transpose()?;
    let targets = Targets {
        sysctls: Box::new(Sysctls::new(sysctls.keys().cloned())),
        nft: Box::new(Counted::new(writers.watch_tables(NftTables::new(nft, dataplane::tables())), numbers.clone())),
        forward: Some(forward),
        balance,
        routes: Box::new(writers.watch(local_routes(routes), Subject::Route)),
        flows: Box::new(Background::start(Conntrack::open()?, numbers.clone()).map_err(refused)?),
    };
    Ok((targets, interests))
}

/// The routes that make whole networks local.
pub(crate) fn local_routes(rtnl: Rtnl) -> Routes {
    Routes::made_by(rtnl, TABLE_LOCAL, PROXY_ROUTE_PROTOCOL, Box::new(local::is_ours))
}

fn refused(error: std::io::Error) -> KernelError {
    KernelError::new("start", "the thread for tracked connections", Cause::Io { call: "clone".to_owned(), error })
}

/// The tables of IPVS.
fn balance(
    servers: IpvsTable,
    (link, excluded): (&IfName, &[Prefix]),
    interest: &mut Interest,
) -> Result<Balance, KernelError> {
    let (links, addresses, routes, writers) = (Rtnl::open()?, Rtnl::open()?, Rtnl::open()?, &interest.writers);
    interest.own.extend([links.port()?, addresses.port()?]);
    let name = link.clone();
    let links = Links::new(links, Box::new(move |found, _| *found == name)).only([link.clone()]);
    let addresses = Spared::new(Addresses::new(addresses, [link.clone()]), excluded.to_vec());
    Ok(Balance {
        links: Box::new(writers.watch(links, Subject::Link)),
        servers: Box::new(Guarded::new(servers, lock::balancer)),
        addresses: Box::new(Routed::new(writers.watch(addresses, Subject::Address), routes)),
    })
}

#[cfg(test)]
mod tests {
    use netstate::family::PerFamily;

    use super::*;

    fn link(name: &str, kind: &str, addresses: &[&str]) -> Interface {
        let address = |text: &&str| {
            let (addr, len) = text.split_once('/').unwrap();
            InterfaceAddress::lasting(addr.parse().unwrap(), len.parse().unwrap())
        };
        let addresses = addresses.iter().map(address).collect();
        Interface {
            index: 1,
            name: IfName::new(name).unwrap(),
            kind: kind.to_owned(),
            mtu: 1500,
            up: true,
            master: None,
            lower: None,
            addresses,
        }
    }

    #[test]
    fn the_nodes_networks_are_those_of_its_own_links() {
        let links = [
            link("lo", "", &["127.0.0.1/8"]),
            link("eth0", "", &["10.4.7.21/24", "10.4.7.99/32", "fd00::21/64", "fd00::99/128", "fe80::1/64"]),
            link("cbr0", "bridge", &["172.7.21.1/24", "fd00:7:21::1/64"]),
            link("kube-ipvs0", "dummy", &["192.168.0.10/32", "192.168.1.1/24"]),
            link("br0", "bridge", &["10.5.0.1/16"]),
            link("eth1", "", &["172.7.99.21/24"]),
        ];
        let networks = own_networks(&links, PerFamily::new("172.7.0.0/16".parse().ok(), "fd00:7::/32".parse().ok()));
        let text: Vec<_> = networks.iter().map(|n| format!("{} {}", n.link, n.network)).collect();
        assert_eq!(text, ["br0 10.5.0.0/16", "eth0 10.4.7.0/24", "eth0 fd00::/64", "eth1 172.7.99.0/24"]);
    }

    #[test]
    fn connection_reuse_is_turned_off_where_it_costs_a_second() {
        for (release, off) in [
            ("4.19.0-amd64", true),
            ("5.8.1", true),
            ("5.9.0", false),
            ("6.1.0-56", false),
            ("4.1.0", true),
            ("4.0.9", false),
            ("x", false),
        ] {
            assert_eq!(sysctls(release, &[IpFamily::V4]).len() == 5, off, "{release}");
        }
    }
}
