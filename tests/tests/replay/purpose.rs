//! Where ours differs on purpose.
//!
//! Invariant: the list is checked both ways. What is listed and does not differ fails the test until it is off the list; what is not
//! listed must be the same as kube-proxy did it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use oracle::{Outcome, Refusal, Run, Seen, Source};

use super::client::{Target, Transport};
use super::objects::{Kind, Objects};
use super::{Difference, Setting};

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

const ON_PURPOSE: &[OnPurpose] = &[
    by_ipvs("28-affinity-timeout [a connection every 5.5 s, 6 times]", "ours: each has kept its own", TEMPLATES),
    by_ipvs("47-endpoint-removed-tcp [Service deleted]", "open connection", AT_ONCE),
    by_ipvs("48-udp-exchange [slice empty]", "ours: nobody", NO_ENDPOINT),
    by_ipvs("48-udp-exchange [p21 terminating and serving, p22 ready]", "ours: p22", NO_NEW),
    by_ipvs("48-udp-exchange [all endpoints terminating and not serving]", "ours: nobody", NO_ENDPOINT),
    by_ipvs("48-udp-exchange [Service deleted]", "ours: nobody", NO_ENDPOINT),
    by_nftables("48-udp-exchange [slice empty]", "ours: nobody", NO_ENDPOINT),
    by_nftables("48-udp-exchange [p21 terminating and serving, p22 ready]", "ours: p22", NO_NEW),
    by_nftables("48-udp-exchange [all endpoints terminating and not serving]", "ours: nobody", NO_ENDPOINT),
    by_nftables("48-udp-exchange [Service deleted]", "ours: nobody", NO_ENDPOINT),
    at_the_bridge("nftables"),
    at_the_bridge("ipvs"),
];

const TEMPLATES: &str = "IPVS keeps a client as long as the kernel knows a connection of it, two minutes after its end \
    (kubernetes#89358), as in kube-proxy's mode ipvs";

const AT_ONCE: &str = "a virtual server goes with its Service, as in kube-proxy's mode ipvs: its connections are reset, so that clients \
    learn it";

const NO_ENDPOINT: &str =
    "kube-proxy leaves a flow with an endpoint that serves no more, for as long as it sends (kubernetes#139628)";

const NO_NEW: &str = "a terminating endpoint takes no datagram of a client while another one is ready";

const SAME: &str =
    "n1 has the address of its bridge there: masqueraded or not it is the same address, and ours keeps the port";

const fn by_ipvs(begins: &'static str, contains: &'static str, reason: &'static str) -> OnPurpose {
    OnPurpose { path: "ipvs", run: Run::Plain, begins, contains, reason }
}

const fn by_nftables(begins: &'static str, contains: &'static str, reason: &'static str) -> OnPurpose {
    OnPurpose { path: "nftables", run: Run::Plain, begins, contains, reason }
}

const fn at_the_bridge(path: &'static str) -> OnPurpose {
    let (begins, contains) = ("11-nodeport-local-with [all]", "node-n1 -> nodePort at bridge address (172.7.21.1");
    OnPurpose { path, run: Run::NodePortAll, begins, contains, reason: SAME }
}

impl OnPurpose {
    fn is_of(&self, setting: Setting) -> bool {
        (self.path, self.run) == (setting.path, setting.run)
    }

    fn explains(&self, text: &str) -> bool {
        text.starts_with(self.begins) && text.contains(self.contains)
    }
}

/// What a client sees where kube-proxy's mode nftables showed it `theirs`. By IPVS that differs as in kube-proxy's mode ipvs:
///
/// * virtual addresses are the node's own, because IPVS takes packets to such addresses only: they answer a ping, and a port that nobody
///   serves is refused;
/// * the node connects from the virtual address, which leads nowhere back: it is masqueraded where nobody is known for a Pod, too.
pub(crate) fn expected(setting: Setting, objects: &Objects, (client, target): (&str, Target), theirs: &Seen) -> Seen {
    let Target { transport, to, .. } = target;
    let kind = objects.kind(to.ip());
    match (setting.path, kind, theirs.outcome) {
        // The node's own ping of a clusterIP is refused, as by nftables.
        ("ipvs", Some(Kind::Virtual), _) if transport == Transport::Ping && client == "node-n1" => theirs.clone(),
        ("ipvs", Some(_), Some(Outcome::Refused | Outcome::Timeout)) if transport == Transport::Ping => {
            Seen { outcome: Some(Outcome::Answered), endpoints: ["echo-reply".to_owned()].into(), ..Seen::default() }
        }
        ("ipvs", Some(Kind::External), Some(Outcome::Timeout)) if !objects.serves(transport, to) => {
            Seen { outcome: Some(Outcome::Refused), by: Some(Refusal::Rule), ..Seen::default() }
        }
        ("ipvs", Some(_), Some(Outcome::Answered))
            if client == "node-n1" && theirs.source == [Source::Client].into() =>
        {
            let by_bridge = |name: &String| name.starts_with("p1");
            let source = |name| if by_bridge(name) { Source::N1Bridge } else { Source::N1Eth0 };
            Seen { source: theirs.endpoints.iter().map(source).collect(), ..theirs.clone() }
        }
        _ => theirs.clone(),
    }
}

/// Whether a difference is on purpose.
pub(crate) fn explains(setting: Setting, text: &str) -> bool {
    ON_PURPOSE.iter().any(|reason| reason.is_of(setting) && reason.explains(text))
}

/// Holds the differences of each case against the list.
pub(crate) fn hold(setting: Setting, found: &BTreeMap<String, Vec<Difference>>) -> Result<()> {
    let mut complaints = Vec::new();
    for (case, differences) in found {
        let reasons =
            ON_PURPOSE.iter().filter(|reason| reason.is_of(setting) && reason.begins.starts_with(case.as_str()));
        for reason in reasons {
            if !differences.iter().any(|difference| reason.explains(&difference.text)) {
                let OnPurpose { begins, reason, .. } = reason;
                complaints.push(format!("{begins}: nothing differs any more, take it off the list: {reason}"));
            }
        }
        let left = differences.iter().filter(|difference| !explains(setting, &difference.text));
        complaints.extend(left.map(|difference| format!("{} {}", difference.family, difference.text)));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{} {:?}: {} differences:\n{}", setting.path, setting.run, complaints.len(), complaints.join("\n"));
}
