//! The proofs: who was asked from where, who answered, and whom the server saw.
//!
//! Invariant: each row is one kind of traffic with real packets; its verdict compares every single answer with what must hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::Host;
use lab::echo::{self, Answer};

use crate::Proxy;
use crate::report::{Report, ms};
use crate::stage::{Stage, short};

const LIMIT: Duration = Duration::from_secs(5);
/// Service `web` of configs/services/web.yaml.
const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 10)), 80);
/// Service `echo` of configs/services/echo.yaml, UDP.
const ECHO: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 11)), 7);

/// How connections are spread over four endpoints.
#[derive(Clone, Copy)]
struct Spread {
    text: &'static str,
    /// Requests to the Service from each place.
    requests: usize,
    /// The least that each endpoint answers.
    least: usize,
}

impl Spread {
    /// IPVS's round robin counts. nftables draws lots: that one of four endpoints is drawn in none of 80 draws happens once in
    /// two thousand million times.
    const fn of(proxy: Proxy) -> Self {
        match proxy {
            Proxy::Ipvs => Self { text: "evenly", requests: 8, least: 2 },
            Proxy::Nftables => Self { text: "at random", requests: 80, least: 1 },
        }
    }
}

/// Whom the server must see.
enum Source {
    /// This very address.
    Is(IpAddr),
    /// Any address but this one: the packet was masqueraded.
    IsNot(IpAddr),
    /// Depends on the endpoint; checked elsewhere.
    Any,
}

impl Source {
    fn holds(&self, seen: IpAddr) -> bool {
        match self {
            Self::Is(addr) => seen == *addr,
            Self::IsNot(addr) => seen != *addr,
            Self::Any => true,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Is(addr) => addr.to_string(),
            Self::IsNot(addr) => format!("not {addr}"),
            Self::Any => "any".to_owned(),
        }
    }
}

/// Pods among each other and to the outside.
pub(crate) fn direct(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step("Pods talk: one node, across nodes with the source kept, masqueraded to the outside");
    let [one, two] = stage.nodes.as_slice() else { anyhow::bail!("the reference cluster has two nodes") };
    let [a, b] = one.pods.as_slice() else { anyhow::bail!("two Pods were made on each node") };
    let far = two.pods.first().context("a Pod on the second node")?;
    let outside = stage.cluster.host("hdss7-200")?;
    let pod_port = |pod: &lab::cni::Sandbox| SocketAddr::new(pod.address().into(), 80);
    let source = IpAddr::from(a.address());
    let mut rows = Vec::new();
    let mut ask =
        |title: &str, from: &dyn Fn(SocketAddr) -> Result<Answer>, to: SocketAddr, name: &str, seen: Source| {
            rows.push(row(report, title, to, &from(to), &Expected { name, seen }));
        };
    let from_a = |to| echo::ask_tcp(a.pod(), to, LIMIT);
    let from_node = |to| echo::ask_tcp(&one.host, to, LIMIT);
    let udp_from_a = |to| echo::ask_udp(a.pod(), to, LIMIT);
    ask("Pod to Pod, one node", &from_a, pod_port(b), b.pod().name(), Source::Is(source));
    ask("Pod to Pod, across nodes", &from_a, pod_port(far), far.pod().name(), Source::Is(source));
    ask("the same by UDP", &udp_from_a, pod_port(far), far.pod().name(), Source::Is(source));
    ask("node to Pod, across nodes", &from_node, pod_port(far), far.pod().name(), Source::Any);
    let outside_port = SocketAddr::new(outside.address()?.into(), 8080);
    ask("Pod to outside host", &from_a, outside_port, "hdss7-200", Source::Is(one.host.address()?.into()));
    report.table(&["traffic", "sent to", "answered by", "source seen", "expected", "time", ""], &rows);
    Ok(())
}

/// Who must answer, and whom the answer must have seen.
struct Expected<'a> {
    name: &'a str,
    seen: Source,
}

fn row(report: &mut Report, title: &str, to: SocketAddr, answer: &Result<Answer>, expected: &Expected) -> Vec<String> {
    let (by, source, took, passed) = match answer {
        Ok(answer) => {
            let passed = answer.name == expected.name && expected.seen.holds(answer.client.ip());
            (answer.name.clone(), answer.client.ip().to_string(), ms(answer.took), passed)
        }
        Err(error) => (format!("{error:#}"), String::new(), String::new(), false),
    };
    let verdict = report.check(passed, title);
    vec![title.to_owned(), to.to_string(), by, source, expected.seen.text(), took, verdict]
}

/// The Service from Pods, nodes and the outside.
pub(crate) fn service(stage: &Stage, proxy: Proxy, report: &mut Report) -> Result<()> {
    let how = Spread::of(proxy);
    let requests = how.requests;
    report.step(&format!(
        "Services: {requests} requests to web {WEB} from each place, spread {} over four Pods",
        how.text
    ));
    let [one, two] = stage.nodes.as_slice() else { anyhow::bail!("the reference cluster has two nodes") };
    let outside = stage.cluster.host("hdss7-200")?;
    let gateway = one.host.address()?.to_string();
    outside.run(&["ip", "route", "add", "192.168.0.0/16", "via", &gateway])?;
    let mut rows = Vec::new();
    for pod in one.pods.iter().chain(&two.pods) {
        let title = format!("Pod {}", pod.pod().name());
        rows.push(spread(report, &title, how, &|| echo::ask_tcp(pod.pod(), WEB, LIMIT), pod_rule(pod)));
    }
    for host in [&one.host, &two.host] {
        let title = format!("node {}", short(host));
        rows.push(spread(report, &title, how, &|| echo::ask_tcp(host, WEB, LIMIT), node_rule()));
    }
    let title = format!("{} by way of {}", short(outside), short(&one.host));
    rows.push(spread(report, &title, how, &|| echo::ask_tcp(outside, WEB, LIMIT), outside_rule(outside)?));
    if let Some(pod) = one.pods.first() {
        let title = format!("Pod {}, echo {ECHO} by UDP", pod.pod().name());
        rows.push(spread(report, &title, how, &|| echo::ask_udp(pod.pod(), ECHO, LIMIT), pod_rule(pod)));
    }
    report.table(&["from", "answers by Pod", "sources seen", "rule", "time, mean", ""], &rows);
    Ok(())
}

/// What must hold for the source an endpoint sees, given who answered.
struct Rule {
    text: String,
    holds: Box<dyn Fn(&Answer) -> bool>,
}

/// A Pod keeps its address, except when it reaches itself.
fn pod_rule(pod: &lab::cni::Sandbox) -> Rule {
    let (name, addr) = (pod.pod().name().to_owned(), IpAddr::from(pod.address()));
    let holds = move |answer: &Answer| (answer.client.ip() == addr) == (answer.name != name);
    Rule { text: "own address, masqueraded to itself".to_owned(), holds: Box::new(holds) }
}

/// A node's own connections must not carry the virtual address as source.
fn node_rule() -> Rule {
    Rule { text: format!("not {}", WEB.ip()), holds: Box::new(|answer| answer.client.ip() != WEB.ip()) }
}

/// Traffic from outside is masqueraded, so that the answer comes back the same way.
fn outside_rule(outside: &Host) -> Result<Rule> {
    let source = Source::IsNot(outside.address()?.into());
    Ok(Rule { text: source.text(), holds: Box::new(move |answer| source.holds(answer.client.ip())) })
}

fn spread(report: &mut Report, title: &str, how: Spread, ask: &dyn Fn() -> Result<Answer>, rule: Rule) -> Vec<String> {
    let answers: Result<Vec<Answer>> = (0..how.requests).map(|_| ask()).collect();
    let answers = match answers {
        Ok(answers) => answers,
        Err(error) => {
            let verdict = report.check(false, &format!("Service from {title}: {error:#}"));
            return vec![title.to_owned(), format!("{error:#}"), String::new(), rule.text, String::new(), verdict];
        }
    };
    let mut by_pod: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sources: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for answer in &answers {
        *by_pod.entry(&answer.name).or_default() += 1;
        *sources.entry(answer.client.ip()).or_default() += 1;
    }
    let spread = by_pod.len() == 4 && by_pod.values().all(|n| *n >= how.least);
    let passed = spread && answers.iter().all(|answer| (rule.holds)(answer));
    let verdict = report.check(passed, &format!("Service from {title}"));
    let list = |pairs: Vec<String>| pairs.join(", ");
    let total: Duration = answers.iter().map(|answer| answer.took).sum();
    vec![
        title.to_owned(),
        list(by_pod.iter().map(|(name, n)| format!("{name} {n}")).collect()),
        list(sources.iter().map(|(addr, n)| format!("{addr} {n}")).collect()),
        rule.text,
        ms(total / u32::try_from(how.requests).unwrap_or(1)),
        verdict,
    ]
}
