//! Kernel tables are what the leases ask for, no more and no less.
//!
//! Invariant: each other node's subnet has one route of netd's; with VXLAN each other node has one forwarding entry and one neighbour, and
//! nobody else has one. What is foreign is compared as text.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::addresses::Lease;

/// What a node's kernel holds, as tools print it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    /// `ip route show proto 121`.
    pub(crate) routes: String,
    /// `bridge fdb show dev flannel.1`; `None` with another backend.
    pub(crate) fdb: Option<String>,
    /// `ip neigh show dev flannel.1 nud permanent`.
    pub(crate) neighbours: Option<String>,
}

/// What is wrong with the tables of the node with this address.
pub(crate) fn of_node(name: &str, own: Ipv4Addr, leases: &[Lease], tables: &Tables) -> Vec<String> {
    let others: Vec<&Lease> = leases.iter().filter(|lease| lease.node != own).collect();
    let mut found = Vec::new();
    let mut compare = |what: &str, wanted: BTreeSet<String>, held: BTreeSet<String>| {
        if wanted != held {
            let missing: Vec<_> = wanted.difference(&held).collect();
            let surplus: Vec<_> = held.difference(&wanted).collect();
            found.push(format!("{what} of {name}: missing {missing:?}, surplus {surplus:?}"));
        }
    };
    let words = |text: &str, pick: fn(&str) -> Option<String>| text.lines().filter_map(pick).collect();
    compare("routes", others.iter().map(|lease| lease.network()).collect(), words(&tables.routes, destination));
    if let Some(text) = &tables.fdb {
        let wanted = |lease: &&Lease| Some(format!("{} to {}", lease.vtep.as_ref()?, lease.node));
        compare("forwarding entries", others.iter().filter_map(wanted).collect(), words(text, forwarding));
    }
    if let Some(text) = &tables.neighbours {
        let wanted = |lease: &&Lease| Some(format!("{} at {}", lease.subnet, lease.vtep.as_ref()?));
        compare("neighbours", others.iter().filter_map(wanted).collect(), words(text, neighbour));
    }
    found
}

fn destination(line: &str) -> Option<String> {
    line.split_whitespace().next().filter(|word| word.contains('/')).map(str::to_owned)
}

/// `aa:bb:… dst 10.4.7.21 self permanent`; entries of multicast are the kernel's.
fn forwarding(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let card = words.next()?;
    let target = words.skip_while(|word| *word != "dst").nth(1)?;
    Some(format!("{card} to {target}"))
}

/// `172.7.21.0 lladdr aa:bb:… PERMANENT`.
fn neighbour(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let address: Ipv4Addr = words.next()?.parse().ok()?;
    let card = words.skip_while(|word| *word != "lladdr").nth(1)?;
    Some(format!("{address} at {card}"))
}

/// What somebody did to foreign things of a node: the first line that differs.
pub(crate) fn of_foreign(name: &str, before: &str, after: &str) -> Option<String> {
    if before == after {
        return None;
    }
    let lines = |text: &str| text.lines().map(str::trim).map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, after) = (lines(before), lines(after));
    let (gone, new): (Vec<_>, Vec<_>) = (before.difference(&after).collect(), after.difference(&before).collect());
    Some(format!("foreign things of {name}: gone {gone:?}, new {new:?}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
mod tests {
    use super::*;

    fn leases() -> Vec<Lease> {
        let value = |node: &str, card: &str| {
            format!(r#"{{"PublicIP":"{node}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{card}"}}}}"#)
        };
        vec![
            Lease::read("172.7.21.0-24", &value("10.4.7.21", "02:00:00:00:00:21")).unwrap(),
            Lease::read("172.7.22.0-24", &value("10.4.7.22", "02:00:00:00:00:22")).unwrap(),
        ]
    }

    fn right() -> Tables {
        Tables {
            routes: "172.7.22.0/24 via 172.7.22.0 dev flannel.1 onlink \n".to_owned(),
            fdb: Some("02:00:00:00:00:22 dst 10.4.7.22 self permanent\n33:33:00:00:00:01 self permanent\n".to_owned()),
            neighbours: Some("172.7.22.0 lladdr 02:00:00:00:00:22 PERMANENT \n".to_owned()),
        }
    }

    fn judge(tables: &Tables) -> Vec<String> {
        of_node("a", "10.4.7.21".parse().unwrap(), &leases(), tables)
    }

    #[test]
    fn tables_that_are_what_leases_ask_for_pass_and_each_difference_is_found() {
        assert!(judge(&right()).is_empty(), "{:?}", judge(&right()));
        let missing = Tables { routes: String::new(), ..right() };
        assert!(judge(&missing).first().unwrap().contains("routes of a: missing [\"172.7.22.0/24\"]"));
        let surplus = Tables { routes: right().routes + "172.7.99.0/24 via 10.4.7.99 dev eth0\n", ..right() };
        assert!(judge(&surplus).first().unwrap().contains("surplus [\"172.7.99.0/24\"]"));
        let wrong = Tables { fdb: Some("02:00:00:00:00:22 dst 10.4.7.99 self permanent".to_owned()), ..right() };
        assert!(judge(&wrong).first().unwrap().contains("forwarding entries"));
        let none = Tables { neighbours: Some(String::new()), ..right() };
        assert!(judge(&none).first().unwrap().contains("neighbours of a: missing"));
    }

    #[test]
    fn foreign_thing_that_goes_or_comes_is_found() {
        assert!(of_foreign("a", "one\ntwo", "one\ntwo").is_none());
        let found = of_foreign("a", "one\ntwo", "two\nthree").unwrap();
        assert!(found.contains("gone [\"one\"]") && found.contains("new [\"three\"]"), "{found}");
    }
}
