//! What clients saw against what kube-proxy's clients saw.
//!
//! Invariant: a wrong endpoint, source or kind of refusal is final. Only what is missing may come with more connections: an endpoint
//! that chance has not chosen yet, an answer that was late.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use oracle::{Outcome, Refusal, Seen, Source, twin};

use super::client::{End, Ended};

/// What one client has seen of one address so far.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    ends: BTreeSet<(Outcome, Option<Refusal>)>,
    endpoints: BTreeSet<String>,
    sources: BTreeSet<Source>,
    /// An endpoint saw the client's own address and port, and the address is also the one that the node would masquerade to.
    is_undecided: bool,
    other_ports: BTreeSet<String>,
    odd: BTreeSet<String>,
}

/// Whether it is the same.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    /// Not all endpoints have answered yet.
    Partial(String),
    /// Some got no answer in time.
    Late(String),
    Different(String),
}

impl Sight {
    /// Takes in the ends of more connections.
    pub(crate) fn take(&mut self, ended: &[Ended]) {
        for (local, end) in ended {
            match end {
                End::Answered(line) => self.answer(line, *local),
                End::Not(outcome, by) => drop(self.ends.insert((*outcome, *by))),
                End::Odd(text) => drop(self.odd.insert(text.clone())),
            }
        }
    }

    fn answer(&mut self, line: &str, local: Option<SocketAddr>) {
        self.ends.insert((Outcome::Answered, None));
        let mut words = line.split_whitespace();
        self.endpoints.extend(words.next().map(str::to_owned));
        let (Some(port), Some(client)) = (words.next(), words.next()) else {
            if line != "echo-reply" {
                self.odd.insert(format!("answered {line:?}"));
            }
            return;
        };
        if port != "8080" {
            self.other_ports.insert(format!("{}:{port}", line.split(' ').next().unwrap_or_default()));
        }
        match client.parse().ok().and_then(|client| source(client, local)) {
            Some(Source::Client) if local.is_some_and(|local| is_eth0(local.ip())) => self.is_undecided = true,
            Some(source) => drop(self.sources.insert(source)),
            None => drop(self.odd.insert(format!("an endpoint saw {client}"))),
        }
    }

    /// Compares it with what kube-proxy's client saw. A client that keeps its endpoint sees one of them.
    pub(crate) fn judge(&self, theirs: &Seen, sticky: bool) -> Verdict {
        let text = || format!("kube-proxy: {theirs}; ours: {self}");
        let expected = (theirs.outcome.unwrap_or(Outcome::Answered), theirs.by);
        let wrong: BTreeSet<_> = self.ends.iter().filter(|end| **end != expected).collect();
        if !self.odd.is_empty() || wrong.iter().any(|(outcome, _)| *outcome != Outcome::Timeout) {
            return Verdict::Different(text());
        }
        let sources = self.sources_beside(theirs);
        let endpoints = if sticky { self.endpoints.len() <= 1 } else { self.endpoints.is_subset(&theirs.endpoints) };
        if !endpoints || !sources.is_subset(&theirs.source) || !self.other_ports.is_subset(&ports(theirs)) {
            return Verdict::Different(text());
        }
        if !wrong.is_empty() {
            return Verdict::Late(text());
        }
        let all = self.endpoints == theirs.endpoints && sources == theirs.source;
        if sticky || all { Verdict::Same } else { Verdict::Partial(text()) }
    }

    /// Whose addresses endpoints saw. Masquerading to the client's own address shows by another port alone, which is by chance the same
    /// once in some ten thousand connections: so that alone is neither wrong nor enough.
    fn sources_beside(&self, theirs: &Seen) -> BTreeSet<Source> {
        let mut sources = self.sources.clone();
        if self.is_undecided && (theirs.source.contains(&Source::Client) || !theirs.source.contains(&Source::N1Eth0)) {
            sources.insert(Source::Client);
        }
        sources
    }

    /// Forgets that some got no answer in time, before they are asked once more.
    pub(crate) fn forgive(&mut self) {
        self.ends.remove(&(Outcome::Timeout, None));
    }
}

/// Endpoints whose port was not 8080, as `p11:8081`.
fn ports(theirs: &Seen) -> BTreeSet<String> {
    theirs.other_ports.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

fn is(address: IpAddr, octets: [u8; 4]) -> bool {
    address == IpAddr::from(octets) || address == twin::address(octets.into())
}

fn is_eth0(address: IpAddr) -> bool {
    is(address, [10, 4, 7, 21]) || is(address, [10, 4, 7, 121])
}

/// Whose address it is that an endpoint saw of a client that has `local` itself.
fn source(client: SocketAddr, local: Option<SocketAddr>) -> Option<Source> {
    match () {
        () if Some(client) == local => Some(Source::Client),
        () if is(client.ip(), [172, 7, 21, 1]) => Some(Source::N1Bridge),
        () if is_eth0(client.ip()) => Some(Source::N1Eth0),
        // Two connections of one port to two addresses of a Service and one endpoint: the kernel gives the second another port.
        () if local.is_some_and(|local| local.ip() == client.ip()) => Some(Source::Client),
        () => None,
    }
}

impl std::fmt::Display for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {:?} who see {:?}", self.ends, self.endpoints, self.sources)?;
        if self.is_undecided {
            write!(f, " and the client's address at the node")?;
        }
        for text in &self.odd {
            write!(f, ", {text}")?;
        }
        Ok(())
    }
}
