//! Parameters of this host that packets meet.

use daemon::doctor::Trouble;
use netstate::IpFamily;

use super::Facts;

/// Whether the kernel forwards packets.
pub(super) fn forwarding(facts: &Facts) -> Vec<Trouble> {
    let all = [(IpFamily::V4, "ipv4/ip_forward"), (IpFamily::V6, "ipv6/conf/all/forwarding")];
    let is_off = |(family, name): &(IpFamily, &str)| facts.has(*family) && facts.parameter(name) == Some(0);
    let trouble = |(family, name): (IpFamily, &str)| {
        let key = name.replace('/', ".");
        let fix = format!("sysctl -w net.{key}=1, and look for who turns it off in /etc/sysctl.d");
        Trouble::problem(format!("{family} is not forwarded: net.{key} is 0"), fix)
    };
    all.into_iter().filter(is_off).map(trouble).collect()
}

/// Whether packets were dropped because their source is reached by another interface.
pub(super) fn reverse_path(facts: &Facts) -> Vec<Trouble> {
    if facts.reverse_path_drops == 0 {
        return Vec::new();
    }
    let all = facts.parameter("ipv4/conf/all/rp_filter").unwrap_or_default();
    let links = facts.known.kernel.interfaces.iter().map(|link| link.name.as_str());
    let strict = |name: &&str| {
        all.max(facts.parameter(&format!("ipv4/conf/{name}/rp_filter")).unwrap_or_default()) == 1 && *name != "lo"
    };
    let names: Vec<&str> = links.filter(strict).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let found = format!(
        "{} packets were dropped for their source address since this host is up; strict on {}",
        facts.reverse_path_drops,
        names.join(", ")
    );
    let fix = "if these are of Services: sysctl -w net.ipv4.conf.IFACE.rp_filter=2 (loose), and in net.ipv4.conf.all";
    vec![Trouble::note(found, fix)]
}

/// Whether answers of one Pod to another on the same bridge pass the rules that must rewrite them.
pub(super) fn bridges(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for (family, name) in [(IpFamily::V4, "bridge-nf-call-iptables"), (IpFamily::V6, "bridge-nf-call-ip6tables")] {
        let of_pods = |address: &netstate::InterfaceAddress| {
            IpFamily::of(address.addr) == family && facts.known.pods.iter().any(|pods| pods.contains(address.addr))
        };
        let links = facts.known.kernel.interfaces.iter();
        let bridge = links.filter(|link| link.kind == "bridge").find(|link| link.addresses.iter().any(of_pods));
        let Some(bridge) = bridge else { continue };
        let (state, load) = match facts.parameter(&format!("bridge/{name}")) {
            Some(0) => (format!("net.bridge.{name} is 0"), ""),
            None => ("br_netfilter is not loaded".to_owned(), "modprobe br_netfilter && "),
            Some(_) => continue,
        };
        troubles.push(Trouble::problem(
            format!(
                "{state}: a Pod on {} that reaches a Pod on it by a Service gets the answer past the rules",
                bridge.name
            ),
            format!("{load}sysctl -w net.bridge.{name}=1"),
        ));
    }
    troubles
}

/// Whether the table of tracked connections has room.
pub(super) fn conntrack(facts: &Facts) -> Vec<Trouble> {
    let read = |name: &str| facts.parameter(&format!("netfilter/nf_conntrack_{name}"));
    let (Some(count), Some(max)) = (read("count"), read("max").filter(|max| *max > 0)) else { return Vec::new() };
    let share = count.saturating_mul(100) / max;
    let found = format!("{count} of {max} connections are tracked ({share} %): new ones are dropped when it is full");
    let fix = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}, or --conntrack-max-per-core; or find who opens so many (conntrack -L)",
        max.saturating_mul(2)
    );
    match share {
        ..80 => Vec::new(),
        80..95 => vec![Trouble::note(found, fix)],
        _ => vec![Trouble::problem(found, fix)],
    }
}
