//! What is not served yet, and where ours differs on purpose.
//!
//! Invariant: both lists are checked both ways. A case that is listed and passes fails the test until it is off the list; what is not
//! listed must be the same as kube-proxy did it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use netstate::IpFamily;
use oracle::Run;

use super::{Difference, Setting};

/// Cases that differ because something is not served yet.
struct Pending {
    path: &'static str,
    run: Run,
    family: IpFamily,
    reason: &'static str,
    /// The numbers of the cases.
    cases: &'static str,
}

/// Where ours is right and kube-proxy's recorded answer is not, or says nothing about it.
struct OnPurpose {
    path: &'static str,
    run: Run,
    /// What the difference begins with: case and step.
    begins: &'static str,
    /// What it contains.
    contains: &'static str,
    reason: &'static str,
}

const PENDING: &[Pending] = &[];

const ON_PURPOSE: &[OnPurpose] = &[
    by_ipvs("24-lb-source-ranges [Pods of n1 only]", "node-n1 -> lbIP", BRIDGE),
    by_ipvs("51-ping [all]", "echo-reply", LOCAL),
    by_ipvs("43-unallocated [all]", "-> other port of the externalIP", LOCAL),
    by_ipvs("43-unallocated [all]", "-> other port of the lbIP", LOCAL),
    from_the_node("01-clusterip"),
    from_the_node("06-itp-local-with"),
    from_the_node("10-nodeport-cluster"),
    from_the_node("11-nodeport-local-with"),
    from_the_node("12-nodeport-local-without"),
    from_the_node("15-both-policies-local"),
    from_the_node("16-externalips-cluster"),
    from_the_node("20-lb-vip-cluster"),
    from_the_node("22-lb-local"),
    from_the_node("46-host-network"),
    OnPurpose {
        path: "nftables",
        run: Run::NodePortAll,
        begins: "11-nodeport-local-with [all]",
        contains: "node-n1 -> nodePort at bridge address (172.7.21.1",
        reason: "n1 has the address of its bridge there: masqueraded or not it is the same address, and ours keeps the port",
    },
];

const LOCAL: &str = "IPVS takes packets to addresses of the node only, so that virtual ones are its own: they answer a ping, and a \
    port that nobody serves is refused, as in kube-proxy's mode ipvs";

const BRIDGE: &str = "with IPVS a node connects from the virtual address, so that a range lets it in which holds one of its \
    addresses, here that of its bridge, from which it may connect by nftables, too";

const fn by_ipvs(begins: &'static str, contains: &'static str, reason: &'static str) -> OnPurpose {
    OnPurpose { path: "ipvs", run: Run::Plain, begins, contains, reason }
}

/// The node's own connections to ClusterIPs where nobody is known for a Pod.
const fn from_the_node(case: &'static str) -> OnPurpose {
    OnPurpose {
        path: "ipvs",
        run: Run::NoDetector,
        begins: case,
        contains: "node-n1 -> clusterIP",
        reason: FROM_VIRTUAL,
    }
}

const FROM_VIRTUAL: &str = "with IPVS a node connects from the virtual address, which leads nowhere back: its connections are masqueraded, as in \
    kube-proxy's mode ipvs; the recorded runs were in mode nftables";

/// Holds the differences of each case against the lists.
pub(crate) fn hold(setting: Setting, found: &BTreeMap<String, Vec<Difference>>) -> Result<()> {
    let mut complaints = Vec::new();
    for (case, differences) in found {
        let of_this_run = |reason: &&OnPurpose| (reason.path, reason.run) == (setting.path, setting.run);
        let reasons =
            || ON_PURPOSE.iter().filter(of_this_run).filter(|reason| reason.begins.starts_with(case.as_str()));
        let explains =
            |reason: &OnPurpose, text: &str| text.starts_with(reason.begins) && text.contains(reason.contains);
        for reason in reasons() {
            if !differences.iter().any(|difference| explains(reason, &difference.text)) {
                complaints.push(format!("{case}: nothing differs any more, take it off the list: {}", reason.reason));
            }
        }
        for family in IpFamily::ALL {
            let left: Vec<_> = differences.iter().filter(|difference| difference.family == family).collect();
            let left: Vec<_> = left
                .into_iter()
                .filter(|difference| !reasons().any(|reason| explains(reason, &difference.text)))
                .collect();
            match listed(setting, family, case) {
                Some(pending) if left.is_empty() => {
                    complaints.push(format!(
                        "{case} {family}: it passes, take it off the list of what is not served: {}",
                        pending.reason
                    ));
                }
                Some(pending) => {
                    for difference in left {
                        eprintln!("not served ({}): {family} {}", pending.reason, difference.text);
                    }
                }
                None => complaints.extend(left.iter().map(|difference| format!("{family} {}", difference.text))),
            }
        }
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} {:?}: {} differences:\n{}", setting.path, setting.run, complaints.len(), complaints.join("\n"));
}

/// Whether a case is expected to differ.
pub(crate) fn is_listed(setting: Setting, family: IpFamily, case: &str) -> bool {
    listed(setting, family, case).is_some()
}

fn listed(setting: Setting, family: IpFamily, case: &str) -> Option<&'static Pending> {
    let number = case.split('-').next().unwrap_or(case);
    PENDING.iter().find(|pending| {
        (pending.path, pending.run, pending.family) == (setting.path, setting.run, family)
            && pending.cases.split_whitespace().any(|listed| listed == number)
    })
}
