//! What Pods, nodes and the outside do all through a migration: pings and HTTP requests, each of which is counted.
//!
//! Invariant: every echo request has a number and every HTTP request an answer that names a Pod, so what is lost is known one by one; a
//! client that lost something goes on and counts.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use lab::{Place, Process, echo, eventually};
use nix::sys::signal::Signal;

use crate::kube_cluster::LIMIT;

/// How long an answer may take on a busy machine; without one by then the request is lost.
const LATE: Duration = Duration::from_secs(20);
/// How long the first answer of a server is waited for before it is asked again: a connection that was begun before the node had its rules is
/// never led to an endpoint.
pub(crate) const EARLY: Duration = Duration::from_secs(2);
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(30);
/// Between two pings, in seconds.
const INTERVAL: &str = "0.05";

/// How a client connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Anew for each request.
    New,
    /// Once; a connection that breaks is a loss.
    Kept,
}

/// All clients; they go on until they are stopped.
#[derive(Default)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pings: Vec<(String, Process)>,
    clients: Vec<Client>,
}

struct Client {
    name: String,
    answers: Arc<AtomicUsize>,
    /// Gives the reasons of what was lost.
    running: JoinHandle<Vec<String>>,
}

impl Load {
    /// Pings an address from somewhere.
    pub(crate) fn ping(&mut self, from: &impl Place, to: &str) -> Result<()> {
        let name = format!("ping from {} to {to}", from.label());
        eventually(LIMIT, || from.run(&["ping", "-n", "-c1", "-W2", to]).map(drop)).with_context(|| name.clone())?;
        let command = from.command(OsStr::new("ping")).args(["-n", "-i", INTERVAL, to]);
        self.pings.push((name.clone(), command.start(&name)?));
        Ok(())
    }

    /// Asks a web server from somewhere.
    pub(crate) fn ask(&mut self, from: impl Place + Send + 'static, to: &str, how: Connection) -> Result<()> {
        let name = format!("HTTP from {} to {to} ({how:?})", from.label());
        let server: SocketAddr = to.parse().with_context(|| name.clone())?;
        eventually(LIMIT, || echo::ask_tcp(&from, server, EARLY)).with_context(|| name.clone())?;
        let (stop, answers) = (Arc::clone(&self.stop), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&answers);
        let running = thread::Builder::new().spawn(move || match how {
            Connection::New => connect(&from, server, &stop, &counted),
            Connection::Kept => keep(&from, server, &stop, &counted),
        })?;
        self.clients.push(Client { name, answers, running });
        Ok(())
    }

    /// Waits until each client has had ten more answers, which all of them have asked for by now.
    pub(crate) fn flows(&self, after: &str) -> Result<()> {
        let begun: Vec<_> = self.answers()?;
        eventually(LIMIT, || {
            for ((name, now), (_, before)) in self.answers()?.iter().zip(&begun) {
                ensure!(now - before >= 10, "{name}: {} answers more after {after}", now - before);
            }
            Ok(())
        })
    }

    /// How many answers each client has had.
    fn answers(&self) -> Result<Vec<(String, usize)>> {
        let pings = self.pings.iter().map(|(name, ping)| (name.clone(), numbers(&ping.log()).len()));
        let clients = self.clients.iter().map(|client| (client.name.clone(), client.answers.load(Ordering::Relaxed)));
        Ok(pings.chain(clients).collect())
    }

    /// Waits until everything flows, stops all clients, and fails when anything was lost; one line for each of them otherwise.
    pub(crate) fn lost_nothing(self) -> Result<String> {
        let flows = self.flows("the end");
        self.stop.store(true, Ordering::Relaxed);
        let (mut said, mut lost) = (Vec::new(), Vec::new());
        for (name, ping) in &self.pings {
            ping.signal(Signal::SIGINT)?;
            ping.wait(LIMIT)?;
            let numbers = numbers(&ping.log());
            let (last, answered) = (numbers.last().copied().unwrap_or_default(), numbers.len());
            said.push(format!("{name}: {answered} of {last}"));
            // An answer that was on its way at the end is not asked for.
            let missing: Vec<_> = (1..=last).filter(|number| !numbers.contains(number)).collect();
            lost.extend(
                (!missing.is_empty()).then(|| format!("{name}: no answer to {missing:?}, the last was {last}")),
            );
            let refusals = ping.log().lines().filter(|line| line.contains("From ")).count();
            lost.extend((refusals > 0).then(|| format!("{name}: {refusals} times unreachable")));
        }
        for Client { name, answers, running } in self.clients {
            let failures = running.join().map_err(|_| anyhow!("{name} panicked"))?;
            let answers = answers.load(Ordering::Relaxed);
            said.push(format!("{name}: {answers} of {}", answers + failures.len()));
            lost.extend(failures.into_iter().map(|failure| format!("{name}: {failure}")));
        }
        let said = said.join("\n");
        ensure!(lost.is_empty(), "{} losses:\n{}\nof\n{said}", lost.len(), lost.join("\n"));
        flows?;
        Ok(said)
    }
}

/// The numbers of the echo requests that were answered.
fn numbers(log: &str) -> BTreeSet<usize> {
    let number = |line: &str| line.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok();
    log.lines().filter(|line| line.contains(" bytes from ")).filter_map(number).collect()
}

fn connect(from: &impl Place, server: SocketAddr, stop: &AtomicBool, answers: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match echo::ask_tcp(from, server, LATE) {
            Ok(_) => drop(answers.fetch_add(1, Ordering::Relaxed)),
            Err(error) => failures.push(format!("behind {} answers: {error:#}", answers.load(Ordering::Relaxed))),
        }
        thread::sleep(PAUSE);
    }
    failures
}

fn keep(from: &impl Place, server: SocketAddr, stop: &AtomicBool, answers: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let kept = echo::Connection::open(from, server, LATE).and_then(|mut connection| {
            while !stop.load(Ordering::Relaxed) {
                connection.ask()?;
                answers.fetch_add(1, Ordering::Relaxed);
                thread::sleep(PAUSE);
            }
            Ok(())
        });
        if let Err(error) = kept {
            failures.push(format!("behind {} answers: {error:#}", answers.load(Ordering::Relaxed)));
            thread::sleep(PAUSE);
        }
    }
    failures
}
