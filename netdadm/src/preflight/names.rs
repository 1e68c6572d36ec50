//! Names: what this host calls itself, and where the names of the cluster's hosts lead.
//!
//! Pure. Invariant: a name of /etc/hosts is not asked of anybody else, as the system has it.

use std::net::IpAddr;

use daemon::doctor::Trouble;

use super::facts::Case;
use crate::document::Form as _;
use crate::topology::{Host, HostName};

/// What this host calls itself.
pub(super) fn own(case: &Case) -> Vec<Trouble> {
    let name = case.facts.host_name();
    let mut troubles = Vec::new();
    if let Some(plan) = &case.plan {
        // A host that is named by its address is a Node of that name, whatever it calls itself.
        if plan.host.name.value.parse::<IpAddr>().is_ok() {
            return troubles;
        }
        let names = case.names(&plan.host);
        if !names.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            let wanted = names.last().map_or("", String::as_str);
            let found = format!(
                "this host calls itself {name:?}, and the topology {wanted:?}: its certificates and its Node have that name"
            );
            troubles.push(Trouble::problem(found, format!("hostnamectl set-hostname {wanted}")));
            return troubles;
        }
    }
    if let Err(why) = HostName::read(&name.to_ascii_lowercase()) {
        let why = if why.is_empty() { "no name of RFC 1123".to_owned() } else { why };
        let found = format!("this host calls itself {name:?}, which no Node can: {why}");
        troubles.push(Trouble::problem(found, "hostnamectl set-hostname NAME, of small letters, digits and hyphens"));
    }
    let later = case.facts.text("/etc/hostname").unwrap_or_default();
    let later = later.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or(name);
    if !later.eq_ignore_ascii_case(name) {
        let found = format!(
            "this host calls itself {name:?} until it starts again, and then {later:?}: that makes another Node"
        );
        troubles.push(Trouble::problem(found, format!("hostnamectl set-hostname {name}")));
    }
    troubles
}

/// Where the names of the hosts lead.
pub(super) fn all(case: &Case) -> Vec<Trouble> {
    let Some(plan) = &case.plan else { return loopback(case) };
    plan.topology.hosts.iter().flat_map(|host| of(case, host)).collect()
}

fn of(case: &Case, host: &Host) -> Vec<Trouble> {
    let own: Vec<IpAddr> = host.addresses.iter().map(|address| address.value).collect();
    let wanted = own.first().map(ToString::to_string).unwrap_or_default();
    let mut troubles = Vec::new();
    for name in case.names(host).into_iter().filter(|name| name.parse::<IpAddr>().is_err()) {
        let (found, source) = match (in_hosts(case, &name), case.facts.resolved.get(&name)) {
            (found, _) if !found.is_empty() => (found, "/etc/hosts"),
            (_, Some(Ok(found))) => (found.clone(), "the resolver"),
            (_, Some(Err(reason))) => {
                let found = format!("{name} leads nowhere ({reason})");
                troubles.push(Trouble::note(
                    found,
                    format!("echo '{wanted} {name}' >> /etc/hosts; or `etcHosts: true` in the topology"),
                ));
                continue;
            }
            _ => continue,
        };
        if let Some(wrong) = found.iter().find(|address| !own.contains(address)) {
            let found = format!("{source} leads {name} to {wrong}, and the topology has it at {wanted}");
            let fix = format!("write {wanted} {name} into /etc/hosts, and take {wrong} away from that name");
            troubles.push(Trouble::problem(found, fix));
        }
    }
    troubles
}

/// Without a topology only this is known to be wrong.
fn loopback(case: &Case) -> Vec<Trouble> {
    let name = case.facts.host_name();
    let found = in_hosts(case, name);
    match found.iter().find(|address| address.is_loopback()) {
        Some(address) => vec![Trouble::note(
            format!("/etc/hosts leads {name} to {address}: programs that ask for this host's address get that one"),
            format!("write this host's address in front of {name} instead of {address}"),
        )],
        None => Vec::new(),
    }
}

fn in_hosts(case: &Case, name: &str) -> Vec<IpAddr> {
    let lines = case.facts.text("/etc/hosts").unwrap_or_default().lines();
    let lines = lines.filter_map(|line| line.split('#').next());
    let matching = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    matching.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_named_by_its_address_may_call_itself_anything() {
        let topology = crate::check::text(include_str!("../../../configs/clusters/atomic.yaml")).topology.unwrap();
        let mut case = Case::planted(&[("/proc/sys/kernel/hostname", "atomic-131"), ("/etc/hostname", "atomic-131")]);
        let host = topology.hosts[1].clone();
        case.plan = Some(crate::preflight::Plan { topology, host });
        assert!(own(&case).is_empty(), "{:?}", own(&case));
    }
    use crate::preflight::tests::said;

    const NAME: &str = "/proc/sys/kernel/hostname";

    #[test]
    fn a_host_with_another_name_than_in_the_topology_is_found() {
        let named = |name| Case::planted(&[(NAME, name)]).of_host("hdss7-21");
        let other = said(own(&named("localhost.localdomain\n")));
        assert!(other.contains("set-hostname hdss7-21.host.com") && other.starts_with("PROBLEM"), "{other}");
        for good in ["hdss7-21\n", "hdss7-21.host.com\n", "HDSS7-21\n"] {
            assert_eq!(said(own(&named(good))), "");
        }
        let bad = said(own(&Case::planted(&[(NAME, "k8s_node\n")])));
        assert!(bad.contains("no Node can: certificates carry no underscore"), "{bad}");
        let later = said(own(&Case::planted(&[(NAME, "n1\n"), ("/etc/hostname", "# ours\nn2\n")])));
        assert!(later.contains("until it starts again, and then \"n2\""), "{later}");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_found_and_one_that_leads_nowhere_is_noted() {
        let hosts = (
            "/etc/hosts",
            "127.0.0.1 localhost\n127.0.1.1 hdss7-21.host.com hdss7-21 # Debian\n10.4.7.11 HDSS7-11\n10.4.7.11 hdss7-11.host.com\n10.4.7.99 hdss7-12\n",
        );
        let mut case = Case::planted(&[(NAME, "hdss7-21"), hosts]).of_host("hdss7-21");
        case.facts.resolved.insert("hdss7-22".into(), Err("Name or service not known".into()));
        case.facts.resolved.insert("hdss7-200".into(), Ok(vec!["10.4.7.7".parse().unwrap()]));
        case.facts.resolved.insert("hdss7-200.host.com".into(), Ok(vec!["10.4.7.200".parse().unwrap()]));
        let found = said(all(&case));
        assert!(
            found.contains("/etc/hosts leads hdss7-21 to 127.0.1.1, and the topology has it at 10.4.7.21"),
            "{found}"
        );
        assert!(found.contains("/etc/hosts leads hdss7-12 to 10.4.7.99"), "{found}");
        assert!(found.contains("the resolver leads hdss7-200 to 10.4.7.7"), "{found}");
        assert!(found.contains("note hdss7-22 leads nowhere (Name or service not known)"), "{found}");
        assert!(!found.contains("hdss7-11"), "{found}");
        let alone = said(all(&Case::planted(&[(NAME, "hdss7-21"), hosts])));
        assert!(alone.starts_with("note /etc/hosts leads hdss7-21 to 127.0.1.1"), "{alone}");
    }
}
