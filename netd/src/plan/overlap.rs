//! Networks of an address plan that must not overlap.
//!
//! A node whose own network lies inside the Pod or the Service network answers its neighbours through the wrong path,
//! and nothing says why. Invariant: an overlap is told with both networks by name.

use std::fmt;

use netstate::Prefix;

/// Two networks that share addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    first: (&'static str, Prefix),
    second: (&'static str, Prefix),
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((a, first), (b, second)) = (self.first, self.second);
        let verb = if second.covers(&first) { "lies inside" } else { "contains part of" };
        write!(f, "{a} {first} {verb} {b} {second}: choose networks that share no address")
    }
}

/// Every pair of the plan's networks that overlaps.
#[must_use]
pub fn overlaps(nodes: Prefix, pods: Prefix, services: &[Prefix]) -> Vec<Overlap> {
    let mut named = vec![("node network", nodes), ("Pod network", pods)];
    named.extend(services.iter().map(|services| ("Service network", *services)));
    let mut found = Vec::new();
    for (index, first) in named.iter().enumerate() {
        for second in named.iter().skip(index + 1).filter(|second| second.1.overlaps(&first.1)) {
            found.push(Overlap { first: *first, second: *second });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(nodes: &str, pods: &str, services: &[&str]) -> Vec<String> {
        let parse = |text: &str| text.parse().unwrap();
        let services: Vec<Prefix> = services.iter().map(|text| parse(text)).collect();
        overlaps(parse(nodes), parse(pods), &services).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn address_plans_that_must_come_up_have_no_overlap() {
        assert_eq!(told("10.4.7.0/24", "172.7.0.0/16", &["192.168.0.0/16"]), Vec::<String>::new());
        assert_eq!(told("192.168.32.0/24", "10.244.0.0/16", &["10.96.0.0/12"]), Vec::<String>::new());
        assert_eq!(told("192.168.197.0/24", "172.7.0.0/16", &["192.254.0.0/16"]), Vec::<String>::new());
    }

    #[test]
    fn overlap_is_told_with_both_networks() {
        assert_eq!(
            told("192.168.44.0/24", "172.7.0.0/16", &["192.168.0.0/16"]),
            [
                "node network 192.168.44.0/24 lies inside Service network 192.168.0.0/16: choose networks that share no address"
            ]
        );
        assert_eq!(told("172.0.0.0/8", "172.7.0.0/16", &["172.7.9.0/24"]).len(), 3);
    }
}
