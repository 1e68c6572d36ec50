//! What the data path needs of the kernel, and what others have put in its way.

use std::net::IpAddr;

use daemon::doctor::Trouble;
use netstate::IpFamily;

use super::Facts;
use crate::dataplane::{Mode, vip};

/// What the data path is made of; modules, schedulers and parameters of IPVS.
pub(super) fn ipvs(facts: &Facts) -> Vec<Trouble> {
    let lack = |(name, fix): &(String, String)| Trouble::problem(format!("this kernel has no {name}"), fix.clone());
    let mut troubles: Vec<Trouble> = facts.lacking.iter().map(lack).collect();
    if facts.mode() == Mode::Nftables {
        return troubles;
    }
    if !facts.has_ipvs {
        let fix = "modprobe ip_vs, and name it in /etc/modules-load.d; or --proxy-mode nftables, which needs none";
        troubles.push(Trouble::problem("this kernel has no IPVS loaded", fix));
        return troubles;
    }
    if facts.has_scheduler == Some(false) {
        let name = &facts.known.scheduler;
        let fix = format!("modprobe ip_vs_{name}, or name another one by --ipvs-scheduler");
        troubles.push(Trouble::problem(format!("IPVS has no scheduler {name:?}: no virtual server can be made"), fix));
    }
    if facts.parameter("ipv4/vs/conntrack") == Some(0) {
        let found = "net.ipv4.vs.conntrack is 0: balanced connections cannot be masqueraded";
        troubles.push(Trouble::problem(found, "sysctl -w net.ipv4.vs.conntrack=1, and look for who turns it off"));
    }
    troubles
}

/// Another kube-proxy. What it left goes by our own command: kube-proxy's `--cleanup` empties IPVS, with our virtual servers in it.
pub(super) fn rival(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if let Some(rival) = &facts.rival {
        let fix = "stop it (kubectl -n kube-system delete daemonset kube-proxy, or its unit), then ipvs-proxy --cleanup-kube-proxy";
        troubles.push(Trouble::problem(rival.clone(), fix));
    }
    if !facts.leftovers.is_empty() {
        let found =
            format!("a kube-proxy has left {}: its rules lead connections before ours do", facts.leftovers.join(", "));
        troubles.push(Trouble::problem(found, "ipvs-proxy --cleanup-kube-proxy, or restart this host"));
    }
    troubles
}

/// Chains of others that drop what is forwarded.
pub(super) fn forward(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for chain in facts.denying.iter().filter(|chain| chain.obstructed) {
        let found = format!("{chain}, and ipvs-proxy cannot accept answers of endpoints in it");
        let fix = format!("put an accept of established connections in front of it in {}", chain.key);
        troubles.push(Trouble::problem(found, fix));
    }
    if facts.known.silence.is_some() {
        let open = facts.denying.iter().filter(|chain| !chain.obstructed);
        troubles.extend(
            open.map(|chain| Trouble::note(format!("{chain}"), "ipvs-proxy accepts answers in it while it runs")),
        );
    }
    for family in &facts.legacy {
        let command = if *family == IpFamily::V4 { "iptables-legacy" } else { "ip6tables-legacy" };
        let found =
            format!("FORWARD of {command} denies packets of the Pod network, and ipvs-proxy cannot write there");
        let fix =
            format!("{command} -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT, and one for the Pods");
        troubles.push(Trouble::problem(found, fix));
    }
    troubles
}

/// Virtual addresses that this host has as its own, or that were left on it.
pub(super) fn addresses(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    let vips =
        || facts.known.view.services().flat_map(|service| service.cluster_ips.iter().map(move |vip| (service, vip)));
    for link in facts.known.kernel.interfaces.iter().filter(|link| link.name.as_str() != vip::LINK_NAME) {
        for own in &link.addresses {
            let taken = vips().filter(|(_, vip)| **vip == own.addr);
            troubles.extend(taken.map(|(service, vip)| {
                let name = &link.name;
                let found = format!(
                    "{vip} of services/{} is an address of {name}: this host answers for it itself",
                    service.name
                );
                Trouble::problem(
                    found,
                    format!("ip address delete {vip}/{} dev {name}, and find who put it there", own.len),
                )
            }));
        }
    }
    let is_left = |addr: &IpAddr| facts.mode() == Mode::Nftables && facts.known.kernel.has_virtual(*addr);
    let left = vips().filter(|(_, vip)| is_left(vip)).count();
    if left > 0 {
        let found = format!("{left} virtual addresses are left on {} by the data path ipvs", vip::LINK_NAME);
        troubles
            .push(Trouble::note(found, "they go when their old connections have ended; or: ip link delete kube-ipvs0"));
    }
    troubles
}

/// Whether the networks are local that are to be so by routes, and by those alone.
pub(super) fn local(facts: &Facts) -> Vec<Trouble> {
    let (planned, held) = (facts.known.planned.plane.local_routes(), &facts.known.kernel.routes);
    let missing = planned.iter().filter(|(key, route)| held.get(key) != Some(route)).map(|(key, _)| {
        let fix =
            format!("ipvs-proxy makes it again within a second; look for who deletes it: ip monitor route ({key})");
        Trouble::problem(format!("{} is to be local and is not: its ClusterIPs have no address either", key.dst), fix)
    });
    let left = held.keys().filter(|key| !planned.contains_key(key)).map(|key| {
        let found = format!("{} is local by a route of ipvs-proxy that nobody asks for", key.dst);
        Trouble::note(
            found,
            format!("it goes when its old connections have ended; or: ip route delete local {} table local", key.dst),
        )
    });
    let lacks = facts.known.local.iter().filter(|network| !planned.keys().any(|key| network.overlaps(&key.dst)));
    let lacks = lacks.filter(|_| facts.mode() == Mode::Ipvs).map(|network| {
        let found = format!("{network} of ipvs.localCIDRs is not local: all of it is a network of this node's links or of the Pods, or its family is not served");
        Trouble::note(found, "its ClusterIPs have an address each on kube-ipvs0; give Services another network, or leave it out")
    });
    missing.chain(left).chain(lacks).collect()
}

/// Whether this node has a way to virtual addresses: without any, its own clients do not even try.
pub(super) fn route(facts: &Facts) -> Vec<Trouble> {
    let vips = facts.known.view.services().flat_map(|service| &service.cluster_ips);
    let lost: Option<&IpAddr> = vips.into_iter().find(|vip| facts.unreachable.contains_key(vip));
    let Some(vip) = lost else { return Vec::new() };
    let reason = facts.unreachable.get(vip).map(String::as_str).unwrap_or_default();
    let found = format!("this node has no route to {vip}, so its own processes cannot reach a Service: {reason}");
    vec![Trouble::problem(found, "a default route, or: ip route add SERVICE-NETWORK dev lo")]
}
