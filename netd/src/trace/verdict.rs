//! What a real packet shows: whether it arrived, where it was last seen, and what dropped it.
//!
//! Invariant: pure; a refusal counts as arrival only when no rule on either node made it.

use kernel::probe::Reply;
use netstate::Protocol;

use super::Probed;
use super::far::Report;
use super::seen::Seen;
use super::step::Step;
use super::target::Target;

/// What to do about a rule that drops.
const ACCEPT: &str =
    "if this packet shall pass, put an accept in front of that rule; `nft -a list ruleset` shows its place";

/// What the other node says.
#[must_use]
pub(super) fn far_steps(report: &Report, node: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = report.back.iter().map(|step| step.clone().at(node)).collect();
    if let Some(trouble) = &report.trouble {
        steps.push(Step::note("probe", format!("it could not watch: {trouble}"), "").at(node));
    }
    steps.extend(places(&report.seen).into_iter().map(|step| step.at(node)));
    steps
}

/// What came of the probe.
#[must_use]
pub(super) fn steps(probed: &Probed, target: &Target) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(trouble) = &probed.trouble {
        let fix = "see the steps above for what keeps this host from sending";
        return vec![Step::wrong("probe", format!("no packet could be sent to {target}: {trouble}"), fix)];
    }
    if let Some(untraced) = &probed.untraced {
        let fix = "run it as root on a kernel with nftables";
        steps.push(Step::note("probe", format!("its way through the rules cannot be followed: {untraced}"), fix));
    }
    if probed.report.is_none() {
        steps.extend(probed.asked.map(|watches| no_report(&probed.node, watches)));
    }
    if let Some(seen) = &probed.seen {
        steps.extend(places(seen));
    }
    steps.extend(outcome(probed, target));
    steps
}

/// A node from which no report came, though it said that it watches, or without a word.
fn no_report(node: &str, watches: bool) -> Step {
    let (found, fix) = if watches {
        ("watched, and what it saw did not arrive", "run it again; if it stays so, the log of netd there says more")
    } else {
        (
            "does not say what it sees",
            "it runs flannel or an older netd, is down, or UDP port 10247 is closed: `netd doctor`",
        )
    };
    Step::note("other end", format!("{node} {found}"), fix)
}

/// Where packets were last seen on a node, and what dropped them there.
fn places(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(ends) = &seen.translated {
        steps.push(Step::ok("translated", ends.clone()));
    }
    if let Some(there) = &seen.there {
        steps.push(Step::ok("last seen", there.clone()));
    }
    if let Some(back) = &seen.back {
        steps.push(Step::ok("answer", back.clone()));
    }
    for (rule, what) in [(&seen.dropped, "the probe"), (&seen.dropped_back, "its answer")] {
        if let Some(rule) = rule {
            steps.push(Step::wrong("rule", format!("{rule} dropped {what}"), ACCEPT));
        }
    }
    steps
}

fn outcome(probed: &Probed, target: &Target) -> Option<Step> {
    let far = probed.report.as_ref().map(|report| &report.seen);
    let near = probed.seen.as_ref();
    let dropped = [near, far].into_iter().flatten().any(|seen| seen.dropped.is_some() || seen.dropped_back.is_some());
    Some(match probed.reply? {
        Reply::Answered => Step::ok("probe", format!("{target} answered")),
        Reply::Refused if !dropped => Step::ok("probe", format!("{target} is reached; nobody is at that port")),
        Reply::Refused => Step::wrong("probe", format!("{target}: rejected on the way"), ACCEPT),
        Reply::Failed(number) => {
            let text = std::io::Error::from_raw_os_error(number);
            Step::wrong("probe", format!("{target}: {text}"), "see the step that is missing or wrong")
        }
        Reply::Silent => silent(near, far, target, probed.node.is_empty()),
    })
}

/// Nothing came back: what is known of where it went.
fn silent(near: Option<&Seen>, far: Option<&Seen>, target: &Target, is_outside: bool) -> Step {
    let found = |text: String| format!("{target} does not answer: {text}");
    let swallowed = |seen: &Seen| {
        seen.lost_in
            .as_ref()
            .map(|hook| format!("lost in hook {hook} after it {}", seen.there.as_deref().unwrap_or("came")))
    };
    for (seen, whose) in [(near, "this node"), (far, "the other node")] {
        let dropped = match seen {
            Some(Seen { dropped: Some(_), .. }) => "it",
            Some(Seen { dropped_back: Some(_), .. }) => "its answer",
            _ => continue,
        };
        return Step::wrong("probe", found(format!("a rule of {whose} dropped {dropped}")), ACCEPT);
    }
    let legacy =
        "no rule of nftables dropped it there: iptables-legacy (`iptables-legacy -vnL`), IPVS, or the source check";
    if let Some(seen) = far.filter(|seen| seen.there.is_some()) {
        let fix = if seen.passed {
            if target.protocol == Protocol::Udp {
                "the other end got it and said nothing: a UDP server that ignores it, or a firewall inside the Pod"
            } else {
                "the other end got it and said nothing: a firewall inside the Pod, or its route back (see its steps)"
            }
        } else {
            legacy
        };
        let place = swallowed(seen).or_else(|| seen.there.clone()).unwrap_or_default();
        return Step::wrong("probe", found(format!("on the other node it was last seen where it {place}")), fix);
    }
    let Some(seen) = near else {
        return Step::wrong("probe", found("its way is not known".to_owned()), "see the notes above");
    };
    if let Some(lost) = swallowed(seen) {
        return Step::wrong("probe", found(lost), legacy);
    }
    match &seen.there {
        Some(there) if seen.passed => {
            if let Some(back) = &seen.back {
                let fix = "an ICMP error of a router on the way, or an answer that the sender does not take: `tcpdump -ni any icmp or icmp6` beside another trace";
                return Step::wrong("probe", found(format!("it {there}, and what {back} was no answer to it")), fix);
            }
            let fix = if is_outside {
                "look on what is between this node and that host, and on the host: is it up, does it let this packet in, does it answer to what it does not know?"
            } else {
                "look on what is between the nodes and on the other one: is it up, is its tunnel's port open (`netd doctor`)?"
            };
            Step::wrong("probe", found(format!("it {there} and nothing came back")), fix)
        }
        Some(there) => {
            let fix =
                "the kernel had no route for it, or its source check dropped it; see the step that is missing or wrong";
            Step::wrong("probe", found(format!("it {there} and no further")), fix)
        }
        None => {
            let fix = "it did not reach this host's rules: the Pod's own route or interface, or a bridge that passes by the rules";
            Step::wrong("probe", found("it was not seen on this host".to_owned()), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::step::Verdict;
    use super::*;

    fn target() -> Target {
        Target::parse("172.7.22.2:80", 1).unwrap()
    }

    fn after(reply: Reply, near: Seen, far: Option<Seen>) -> String {
        let report = far.map(|seen| Report { seen, ..Report::default() });
        let probed = Probed { reply: Some(reply), seen: Some(near), report, ..Probed::default() };
        let steps = steps(&probed, &target());
        let last = steps.last().unwrap();
        format!("{:?} {}", last.verdict, last.found)
    }

    fn seen(there: &str, passed: bool) -> Seen {
        Seen { there: Some(there.to_owned()), passed, ..Seen::default() }
    }

    #[test]
    fn refusal_is_arrival_unless_a_rule_made_it() {
        let rule = Seen { dropped: Some("rule 7".to_owned()), ..seen("came in by eth0", false) };
        assert!(after(Reply::Answered, seen("left by eth0", true), None).starts_with("Ok "));
        assert!(after(Reply::Refused, seen("left by eth0", true), None).starts_with("Ok "));
        assert!(after(Reply::Refused, rule.clone(), None).starts_with("Wrong "));
        assert!(after(Reply::Refused, seen("left by eth0", true), Some(rule)).starts_with("Wrong "));
        assert!(after(Reply::Failed(libc::EHOSTUNREACH), Seen::default(), None).contains("No route to host"));
    }

    #[test]
    fn silence_says_where_the_probe_was_last_seen() {
        for (near, far, part) in [
            (Seen::default(), None, "not seen on this host"),
            (seen("came in by cbr0", false), None, "it came in by cbr0 and no further"),
            (seen("left by eth0", true), None, "it left by eth0 and nothing came back"),
            (
                Seen { lost_in: Some("forward".to_owned()), ..seen("was forwarded", false) },
                None,
                "lost in hook forward after it was forwarded",
            ),
            (
                seen("left by eth0", true),
                Some(seen("left by cbr0", true)),
                "on the other node it was last seen where it left by cbr0",
            ),
            (
                Seen { back: Some("came in by eth0 for this host".to_owned()), ..seen("left by eth0", true) },
                None,
                "it left by eth0, and what came in by eth0 for this host was no answer to it",
            ),
            (
                Seen { dropped_back: Some("rule 3".to_owned()), ..seen("left by eth0", true) },
                Some(seen("left by cbr0", true)),
                "does not answer: a rule of this node dropped its answer",
            ),
            (
                seen("left by eth0", true),
                Some(Seen { dropped: Some("rule 3".to_owned()), ..seen("came in by eth0", false) }),
                "does not answer: a rule of the other node dropped it",
            ),
        ] {
            let found = after(Reply::Silent, near, far);
            assert!(found.starts_with("Wrong ") && found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn silence_of_a_host_that_is_no_node_is_not_laid_on_the_tunnel() {
        let probed = Probed { reply: Some(Reply::Silent), seen: Some(seen("left by eth0", true)), ..Probed::default() };
        let fix = |probed: &Probed| steps(probed, &target()).last().unwrap().fix.clone();
        assert!(fix(&probed).contains("that host") && !fix(&probed).contains("tunnel"), "{}", fix(&probed));
        let of_a_node = Probed { node: "10.4.7.22".to_owned(), ..probed };
        assert!(fix(&of_a_node).contains("tunnel"), "{}", fix(&of_a_node));
    }

    #[test]
    fn each_thing_that_could_not_be_found_out_is_said() {
        let probed = Probed {
            untraced: Some("old kernel".to_owned()),
            asked: Some(false),
            node: "10.4.7.22".to_owned(),
            reply: Some(Reply::Answered),
            ..Probed::default()
        };
        let steps = steps(&probed, &target());
        assert!(steps.iter().all(|step| !step.stops()));
        assert_eq!(steps.iter().filter(|step| step.verdict == Verdict::Note).count(), 2, "{steps:?}");
        let began = super::steps(&Probed { asked: Some(true), ..probed }, &target());
        assert!(began.iter().any(|step| step.found.ends_with("what it saw did not arrive")), "{began:?}");
        let report =
            Report { trouble: Some("busy".to_owned()), back: vec![Step::ok("route", "x")], ..Report::default() };
        assert!(far_steps(&report, "10.4.7.22").iter().all(|step| step.node == "10.4.7.22"));
        let unsent = Probed { trouble: Some("Network is unreachable".to_owned()), ..Probed::default() };
        assert!(super::steps(&unsent, &target())[0].stops());
    }
}
