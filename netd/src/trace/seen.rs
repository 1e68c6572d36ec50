//! `Seen`: how far a flow's packets came on one node, out of what the kernel said of them.
//!
//! Invariant: pure; only the last place of each direction is a claim, and a rule is named only when the kernel named it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kernel::nft::trace::{End, Event, Fate};
use netstate::nft::Hook;
use serde::{Deserialize, Serialize};

/// How far packets came on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Where the probe was last seen; `None` when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there: Option<String>,
    /// Where its answer was last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<String>,
    /// The rule or policy that dropped the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
    /// The rule or policy that dropped its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_back: Option<String>,
    /// The probe had other ends than it was sent with: a Service's, or a masqueraded source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translated: Option<String>,
    /// The destination that rules gave it, where it is another one.
    #[serde(skip)]
    pub destination: Option<SocketAddr>,
    /// The probe entered this hook and did not come out, and no rule of nftables said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_in: Option<String>,
    /// The probe left this node, or was delivered.
    #[serde(default)]
    pub passed: bool,
}

/// Whether this node is the probe's or its receiver's: a tunnel's packets show no direction by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The probe comes from here.
    Near,
    /// The probe goes here.
    Far,
}

/// What is said of `events`.
#[must_use]
pub(crate) fn seen(
    events: &[Event],
    ends: (SocketAddr, SocketAddr),
    side: Side,
    links: &BTreeMap<u32, String>,
    mut describe: impl FnMut(&Fate) -> String,
) -> Seen {
    let (source, target) = ends;
    let mut seen = Seen::default();
    for event in events {
        let back = is_back(event, source, side);
        match &event.fate {
            Fate::At(hook, _) if back => {
                seen.back = Some(place(event, *hook, links));
            }
            Fate::At(hook, end) => {
                seen.there = Some(place(event, *hook, links));
                seen.lost_in = (*end == End::First).then(|| hook.to_string());
                let last = *end == End::Last && matches!(hook, Hook::Postrouting | Hook::Input);
                seen.passed = last;
                if !event.is_tunnel
                    && (event.source, event.destination) != (source, target)
                    && event.destination.port() != 0
                {
                    seen.translated = Some(format!("{} to {}", event.source, event.destination));
                    seen.destination = Some(event.destination).filter(|destination| *destination != target);
                }
            }
            fate @ Fate::Dropped { .. } => {
                let rule = describe(fate);
                if back { seen.dropped_back = Some(rule) } else { seen.dropped = Some(rule) }
            }
        }
    }
    if seen.dropped.is_some() {
        (seen.lost_in, seen.passed) = (None, false);
    }
    seen
}

/// True for the answer, and for ICMP about the probe.
fn is_back(event: &Event, source: SocketAddr, side: Side) -> bool {
    if event.is_tunnel {
        // What this host sends has an interface to leave by.
        return event.leaves_by.is_none() == (side == Side::Near);
    }
    event.destination.ip() == source.ip()
        && (event.destination.port() == source.port() || event.destination.port() == 0)
}

fn place(event: &Event, hook: Hook, links: &BTreeMap<u32, String>) -> String {
    let name = |index: Option<u32>| index.and_then(|index| links.get(&index)).map_or("?", String::as_str);
    let (came_by, leaves_by) = (name(event.came_by), name(event.leaves_by));
    let wrapped = if event.is_tunnel {
        format!(", wrapped from {} to {}", event.source.ip(), event.destination.ip())
    } else {
        String::new()
    };
    match hook {
        Hook::Ingress | Hook::Prerouting => format!("came in by {came_by}{wrapped}"),
        Hook::Input => format!("came in by {came_by} for this host{wrapped}"),
        Hook::Forward => format!("forwarded from {came_by} to {leaves_by}{wrapped}"),
        Hook::Output => format!("made by this host for {leaves_by}{wrapped}"),
        Hook::Postrouting => format!("left by {leaves_by}{wrapped}"),
    }
}

#[cfg(test)]
mod tests {
    use netstate::nft::{Family, Name, TableKey};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn event(fate: Fate, ends: [&str; 2], links: [Option<u32>; 2]) -> Event {
        let is_tunnel = ends[1].ends_with(":8472");
        let [came_by, leaves_by] = links;
        Event { fate, came_by, leaves_by, source: at(ends[0]), destination: at(ends[1]), is_tunnel }
    }

    fn read(events: &[Event], side: Side) -> Seen {
        let links = [(2, "eth0"), (3, "flannel.1"), (4, "cbr0")].map(|(index, name)| (index, name.to_owned())).into();
        seen(events, (at("172.7.21.2:4000"), at("172.7.22.2:80")), side, &links, |_| {
            "rule 7 of inet theirs in".to_owned()
        })
    }

    const POD: [&str; 2] = ["172.7.21.2:4000", "172.7.22.2:80"];
    const BACK: [&str; 2] = ["172.7.22.2:80", "172.7.21.2:4000"];
    const OUTER: [&str; 2] = ["10.4.7.21:33000", "10.4.7.22:8472"];

    #[test]
    fn last_place_of_each_direction_counts() {
        let seen = read(
            &[
                event(Fate::At(Hook::Prerouting, End::First), POD, [Some(4), None]),
                event(Fate::At(Hook::Forward, End::Last), POD, [Some(4), Some(3)]),
                event(Fate::At(Hook::Postrouting, End::Last), POD, [None, Some(3)]),
                event(Fate::At(Hook::Postrouting, End::Last), OUTER, [None, Some(2)]),
                event(Fate::At(Hook::Prerouting, End::First), ["10.4.7.22:1", "10.4.7.21:8472"], [Some(2), None]),
                event(Fate::At(Hook::Postrouting, End::Last), BACK, [None, Some(4)]),
            ],
            Side::Near,
        );
        assert_eq!(seen.there.as_deref(), Some("left by eth0, wrapped from 10.4.7.21 to 10.4.7.22"));
        assert_eq!(seen.back.as_deref(), Some("left by cbr0"));
        assert!(seen.passed && seen.lost_in.is_none() && seen.translated.is_none(), "{seen:?}");
    }

    #[test]
    fn hook_that_swallows_a_packet_without_a_rule_is_named() {
        let first = event(Fate::At(Hook::Forward, End::First), POD, [Some(4), Some(3)]);
        let seen = read(std::slice::from_ref(&first), Side::Near);
        assert_eq!((seen.lost_in.as_deref(), seen.passed), (Some("forward"), false));
        let key = TableKey { family: Family::Inet, name: Name::literal("theirs") };
        let dropped = Fate::Dropped { table: key, chain: Name::literal("in"), rule: Some(7) };
        let seen = read(&[first, event(dropped.clone(), POD, [Some(4), None])], Side::Near);
        assert_eq!((seen.dropped.as_deref(), seen.lost_in), (Some("rule 7 of inet theirs in"), None));
        let seen = read(&[event(dropped, BACK, [Some(3), None])], Side::Near);
        assert!(seen.dropped.is_none() && seen.dropped_back.is_some(), "{seen:?}");
    }

    #[test]
    fn on_the_far_side_what_comes_wrapped_is_the_probe() {
        let wrapped = event(Fate::At(Hook::Input, End::Last), OUTER, [Some(2), None]);
        let seen = read(std::slice::from_ref(&wrapped), Side::Far);
        assert_eq!(seen.there.as_deref(), Some("came in by eth0 for this host, wrapped from 10.4.7.21 to 10.4.7.22"));
        assert!(read(&[wrapped], Side::Near).there.is_none());
    }

    #[test]
    fn other_ends_are_a_translation_and_icmp_about_the_probe_is_its_answer() {
        let seen = read(
            &[
                event(Fate::At(Hook::Postrouting, End::Last), ["172.7.21.2:4000", "172.7.22.9:8080"], [None, Some(3)]),
                event(Fate::At(Hook::Prerouting, End::Last), ["172.7.22.9:0", "172.7.21.2:0"], [Some(3), None]),
            ],
            Side::Near,
        );
        assert_eq!(seen.translated.as_deref(), Some("172.7.21.2:4000 to 172.7.22.9:8080"));
        assert_eq!(seen.back.as_deref(), Some("came in by flannel.1"));
    }
}
