//! `netd trace`: what a packet meets on its way, from both ends where that can be, and where a real one was last seen.
//!
//! [`facts`] reads the kernel, [`path`] makes steps of it, a probe goes out while [`observer`] follows it here and the
//! other node's daemon does there ([`far`]); [`verdict`] says what came of it. Invariants: what could not be found out is
//! said; nothing stays in the kernel.

pub(crate) mod astray;
mod facts;
pub(crate) mod far;
mod observer;
pub(crate) mod outer;
mod path;
pub(crate) mod pods;
pub(crate) mod seen;
pub(crate) mod serve;
mod step;
pub(crate) mod target;
mod verdict;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ::daemon::json;
use ::daemon::lifecycle::Exit;
use ::daemon::terminal;
use anyhow::{Context as _, Result};
use kernel::Rtnl;
use kernel::probe::{Probe, Reply};
use netstate::Protocol;
use serde::Serialize;

use self::facts::{Facts, Traced};
use self::far::{Far, Report, Watch};
use self::observer::Observer;
use self::pods::Place;
use self::seen::{Seen, Side};
use self::step::Step;
use self::target::{Target, one_host};
use crate::command::args::Flags;
use crate::command::verbs::Trace;
use crate::doctor::{ask, packet};
use crate::run::status::Status;

/// Tries of a UDP probe, and the wait for each answer; TCP asks again by itself.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(500);

/// Time for what the kernel has still to say when the answer is there.
const REST: Duration = Duration::from_millis(50);

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Traces {
    /// Source of the packet.
    from: IpAddr,
    /// Its destination.
    to: String,
    /// Nothing stops it, and a real packet arrived.
    passes: bool,
    /// What it meets.
    steps: Vec<Step>,
}

/// Who sends, and to whom.
struct Ends {
    from: Option<IpAddr>,
    place: Option<Place>,
    target: Target,
    steps: Vec<Step>,
}

/// Traces a packet and prints what it meets; exit status 1 when it does not arrive, 2 when it is not clear what to trace.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) fn act(options: &Trace, flags: &Flags, probe_port: Option<u16>) -> Result<Exit> {
    let status = ask(flags).ok();
    let ends = match ends(options, probe_port, status.as_ref()) {
        Ok(ends) => ends,
        Err(refusal) => {
            terminal::note(&format!("netd: {refusal}"));
            return Ok(Exit::Usage);
        }
    };
    let traces = trace(ends, flags, probe_port, status.as_ref())?;
    if options.json {
        terminal::put(&json::pretty(&traces)?)?;
    } else {
        let verdict = if traces.passes { "passes" } else { "does not pass" };
        terminal::put(&format!("{} to {}: {verdict}\n{}", traces.from, traces.to, step::text(&traces.steps)))?;
    }
    Ok(if traces.passes { Exit::Success } else { Exit::Failure })
}

/// What the words of the command line mean.
fn ends(options: &Trace, probe_port: Option<u16>, status: Option<&Status>) -> Result<Ends, String> {
    let port = probe_port.unwrap_or(packet::PORT);
    let typed = match options.to.as_slice() {
        [] => None,
        [word, target] if word == "to" => Some(Target::parse(target, port)?),
        words => {
            return Err(format!("{:?} is not understood; accepted: netd trace POD|IP [to IP:PORT]", words.join(" ")));
        }
    };
    let subject = subject(&options.subject, typed.map(|target| target.address.is_ipv4()))?;
    let Some(target) = typed else {
        return Ok(Ends { from: None, place: None, target: Target::without_port(subject, port), steps: Vec::new() });
    };
    if subject.is_ipv4() != target.address.is_ipv4() {
        return Err(format!("{subject} and {} are of different families", target.address.ip()));
    }
    let own = Rtnl::open().and_then(|mut rtnl| rtnl.addresses()).unwrap_or_default();
    // Every network namespace has the addresses of loopback, and a Pod can have given itself one of this host's.
    let is_own = subject.is_loopback() || own.iter().any(|(_, addr, _)| *addr == subject);
    let to = target.address.ip();
    if subject.is_loopback() && !to.is_loopback() && !own.iter().any(|(_, addr, _)| *addr == to) {
        return Err(format!(
            "{subject} sends to nobody but this host; accepted: a Pod or another address of this host"
        ));
    }
    let place = if is_own { None } else { pods::place_of(subject) };
    if is_own || place.is_some() {
        return Ok(Ends { from: Some(subject), place, target, steps: Vec::new() });
    }
    if let Some(node) = status.and_then(|status| facts::node(status, subject)) {
        let at: Vec<String> = node.addresses.iter().map(IpAddr::to_string).collect();
        return Err(format!("{subject} is a Pod of the node {}: trace from there", at.join(", ")));
    }
    let fix = "the packet is sent from this host instead; is the Pod gone, or on another node?";
    let steps = vec![Step::missing("pod", format!("no network namespace on this node has {subject}"), fix)];
    Ok(Ends { from: None, place: None, target, steps })
}

/// The address of what is traced.
fn subject(text: &str, v4: Option<bool>) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return one_host(address);
    }
    let attachments = pods::attachments();
    match pods::named(&attachments, text).as_slice() {
        [] => {
            Err(format!("no Pod of this node is called {text:?}; accepted: namespace/name, name, container id or IP"))
        }
        [one] => {
            let fits = |address: &&IpAddr| v4.is_none_or(|v4| address.is_ipv4() == v4);
            let found = one.addresses.iter().find(fits).copied();
            found.ok_or_else(|| format!("the Pod {text} has no address of that family"))
        }
        several => {
            let name = |found: &&pods::Attachment| {
                format!(
                    "{} ({})",
                    found.name.as_deref().unwrap_or("?"),
                    found.container.get(..12).unwrap_or(&found.container)
                )
            };
            let names: Vec<String> = several.iter().map(name).collect();
            Err(format!("{text:?} can be each of {}", names.join(", ")))
        }
    }
}

fn trace(ends: Ends, flags: &Flags, probe_port: Option<u16>, status: Option<&Status>) -> Result<Traces> {
    let Ends { from, place, target, mut steps } = ends;
    let from = match from {
        Some(from) => from,
        None => own_source(target.address.ip()),
    };
    let traced = Traced { from, to: target.address, protocol: target.protocol };
    let gather = |behind| facts::gather(&traced, place.as_ref(), status, &flags.subnet_file, behind);
    let mut facts = gather(None)?;
    let mut probed = probe(&traced, place.as_ref(), &facts, probe_port)?;
    // A Service of nftables or iptables: only a packet shows to whom its rules give it.
    let behind = probed.seen.as_ref().and_then(|seen| seen.destination).filter(|_| facts.service.is_none());
    if behind.is_some() {
        facts = gather(behind)?;
        probed = probe(&traced, place.as_ref(), &facts, probe_port)?;
    }
    steps.extend(path::steps(&facts));
    if let Some(report) = &probed.report {
        steps.extend(verdict::far_steps(report, &probed.node));
    }
    steps.extend(verdict::steps(&probed, &target));
    let passes = !steps.iter().any(Step::stops);
    Ok(Traces { from, to: target.to_string(), passes, steps })
}

/// The source that this host gives its own packets; unspecified where there is no route.
fn own_source(to: IpAddr) -> IpAddr {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let found = Rtnl::open().and_then(|mut rtnl| rtnl.route_to(to));
    found.ok().and_then(|route| route.src).unwrap_or(any)
}

/// What came of a real packet.
#[derive(Debug, Default)]
struct Probed {
    /// Why none could be sent.
    trouble: Option<String>,
    /// What came back.
    reply: Option<Reply>,
    /// What this node saw; `None` when it could not follow the packet.
    seen: Option<Seen>,
    /// Why it could not.
    untraced: Option<String>,
    /// The other node, if there is one.
    node: String,
    /// That it was asked, and whether it said that it watches.
    asked: Option<bool>,
    /// What it saw.
    report: Option<Report>,
}

/// Sends a packet and follows it.
fn probe(traced: &Traced, place: Option<&Place>, facts: &Facts, probe_port: Option<u16>) -> Result<Probed> {
    let mut probed = Probed::default();
    let open = || Probe::new(traced.from, traced.to, traced.protocol);
    let opened = match place {
        Some(place) => place.netns.run(open)?,
        None => open(),
    };
    let source = opened.and_then(|socket| Ok((socket.source()?, socket)));
    let (source, socket) = match source {
        Ok(found) => found,
        Err(error) => {
            probed.trouble = Some(error.to_string());
            return Ok(probed);
        }
    };
    let to = facts.to.unwrap_or(traced.to);
    let far = ask_far(
        &mut probed,
        facts,
        probe_port,
        &Watch { number: ::daemon::shell::seed(), source, target: to, protocol: traced.protocol },
    );
    let mut observer = match Observer::start(source, traced.protocol) {
        Ok(observer) => Some(observer),
        Err(error) => {
            probed.untraced = Some(error.to_string());
            None
        }
    };
    probed.reply = Some(exchange(&socket, traced.protocol));
    if let Some(observer) = &mut observer {
        observer.collect(Instant::now() + REST).context("follow the probe")?;
        probed.seen = Some(observer.seen((source, traced.to), Side::Near));
    }
    probed.report = far.and_then(|far| far.report());
    Ok(probed)
}

/// Asks the node that has the destination to watch.
fn ask_far(probed: &mut Probed, facts: &Facts, probe_port: Option<u16>, watch: &Watch) -> Option<Far> {
    let port = probe_port?;
    let address = facts.node.as_ref()?.addresses.iter().find(|address| address.is_ipv4() == watch.target.is_ipv4());
    let address = address.or_else(|| facts.node.as_ref()?.addresses.first()).copied()?;
    probed.node = address.to_string();
    let far = Far::ask(SocketAddr::new(address, port), facts.vrf.as_ref(), watch).ok().flatten();
    probed.asked = Some(far.is_some());
    far
}

fn exchange(socket: &Probe, protocol: Protocol) -> Reply {
    if protocol == Protocol::Tcp {
        return socket.exchange(&[], WAIT * (TRIES + 1));
    }
    let request = packet::request(::daemon::shell::seed(), 0);
    let mut reply = Reply::Silent;
    for _ in 0..TRIES {
        reply = socket.exchange(&request, WAIT);
        if reply != Reply::Silent {
            break;
        }
    }
    reply
}
