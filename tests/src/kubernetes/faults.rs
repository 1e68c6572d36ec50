//! `Faults`: a place in front of a real API server where connections and answers are lost, slow, refused or late.
//!
//! Invariant: without a fault everything passes unchanged and at once; a fault touches only the requests that it is for. It ends TLS to
//! both sides, so it knows requests from answers and one object from the next.

use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::api_server::ApiServer;
use super::http;
use super::kubeconfig::Kubeconfig;
use super::relay::Relay;
use crate::host::Host;

/// How often what waits checks whether it is to go on.
const PERIOD: Duration = Duration::from_millis(5);
const LIMIT: Duration = Duration::from_secs(30);

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server is not asked; this code is the answer.
    Answer(u16),
    /// The connection is lost in the middle of the next piece of the answer: of an object, where the answer is a watch.
    Cut,
    /// The server does what it is asked, and the connection is lost before its answer.
    LoseAnswer,
    /// The server does what it is asked, and the connection stays without an answer.
    Withhold,
    /// The answer comes with so many bytes per second.
    Slow(u32),
}

/// A request that has passed, or was answered here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Verb of HTTP.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Who the client says it is.
    pub agent: String,
    /// What it was answered.
    pub code: u16,
}

/// The place; it ends with this value, and every connection with it.
#[derive(Debug)]
pub struct Faults {
    state: Arc<State>,
    address: SocketAddr,
    kubeconfig: Kubeconfig,
    acceptor: Option<JoinHandle<()>>,
}

/// What the threads of one place share.
#[derive(Debug, Default)]
pub(crate) struct State {
    rules: Mutex<Rules>,
    changed: Condvar,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Rules {
    rules: Vec<Rule>,
    paused: bool,
    refusing: bool,
    /// Whether there is a listener.
    listening: bool,
}

#[derive(Debug)]
struct Rule {
    /// A part of `METHOD TARGET`.
    requests: String,
    fault: Fault,
    /// How often it is still to happen; without an end when none.
    times: Option<usize>,
}

/// A name that every one shows beside its address, for machines that know it.
const NAME: &str = "api.lab";

impl Faults {
    /// Begins on a port of the machine's loopback, in front of a server on any other machine: no network between them is needed.
    ///
    /// # Errors
    /// When the machine cannot be entered.
    pub fn start(server: &ApiServer, host: &Host) -> Result<Self> {
        Self::start_at(server, host, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Begins on this address of the machine.
    ///
    /// # Errors
    /// When the machine does not have the address, or the port is taken.
    pub fn start_at(server: &ApiServer, host: &Host, at: SocketAddr) -> Result<Self> {
        let listener = listen(host, at)?;
        let address = listener.local_addr()?;
        let shown: Vec<IpAddr> = vec![address.ip()];
        let relay = Relay {
            server: server.host().clone(),
            address: server.address(),
            trust: http::trust(&server.authority().pem())?,
            identity: http::identity(&server.authority().server(&[NAME], &shown)?)?,
        };
        let state = Arc::new(State::default());
        state.lock().listening = true;
        let (accepting, host) = (Arc::clone(&state), host.clone());
        let acceptor = thread::Builder::new()
            .name("faults".to_owned())
            .spawn(move || accepting.accept(&host, address, listener, &Arc::new(relay)))?;
        let kubeconfig = server.kubeconfig().server(&format!("https://{address}"));
        Ok(Self { state, address, kubeconfig, acceptor: Some(acceptor) })
    }

    /// Where it is on its machine.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig of an administrator that leads here; other users are built from it.
    #[must_use]
    pub fn kubeconfig(&self) -> Kubeconfig {
        self.kubeconfig.clone()
    }

    /// From now on this happens to requests whose `METHOD TARGET` contains the text.
    pub fn inject(&self, requests: &str, fault: Fault) {
        self.add(requests, fault, None);
    }

    /// This happens so often to requests whose `METHOD TARGET` contains the text.
    pub fn inject_times(&self, requests: &str, fault: Fault, times: usize) {
        self.add(requests, fault, Some(times));
    }

    /// From now on nothing passes: connections are open, and silent.
    pub fn pause(&self) {
        self.state.lock().paused = true;
    }

    /// From now on connections are refused; open ones are lost.
    ///
    /// # Errors
    /// When it goes on listening.
    pub fn refuse(&self) -> Result<()> {
        self.state.lock().refusing = true;
        self.state.wait(|rules| !rules.listening).context("stop listening")?;
        self.break_connections();
        Ok(())
    }

    /// Open connections are lost; new ones are not.
    pub fn break_connections(&self) {
        for connection in self.state.connections().drain(..) {
            // It may be gone already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Everything passes again.
    ///
    /// # Errors
    /// When its port is taken.
    pub fn heal(&self) -> Result<()> {
        {
            let mut rules = self.state.lock();
            rules.rules.clear();
            (rules.paused, rules.refusing) = (false, false);
            self.state.changed.notify_all();
        }
        self.state.wait(|rules| rules.listening).context("listen again")
    }

    /// Every request so far, in the order of their answers.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often a fault that is counted is still to happen, over all of them.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.state.lock().rules.iter().filter_map(|rule| rule.times).sum()
    }

    fn add(&self, requests: &str, fault: Fault, times: Option<usize>) {
        self.state.lock().rules.push(Rule { requests: requests.to_owned(), fault, times });
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.state.changed.notify_all();
        self.break_connections();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has been reported.
            let _ = acceptor.join();
        }
        self.break_connections();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Keeps a connection, to lose it when that is wanted.
    pub(crate) fn keep(&self, connection: &TcpStream) -> Result<()> {
        self.connections().push(connection.try_clone()?);
        Ok(())
    }

    /// Waits while nothing is to pass.
    pub(crate) fn pass(&self) {
        let mut rules = self.lock();
        while rules.paused && !self.has_ended() {
            rules = self.changed.wait_timeout(rules, LIMIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The fault for a request, of those that `wanted` says can happen now; it has happened then.
    pub(crate) fn take(&self, request: &str, wanted: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut rules = self.lock();
        let index = rules.rules.iter().position(|rule| request.contains(&rule.requests) && wanted(rule.fault))?;
        let rule = rules.rules.get_mut(index)?;
        let fault = rule.fault;
        match &mut rule.times {
            None => {}
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => drop(rules.rules.remove(index)),
        }
        Some(fault)
    }

    pub(crate) fn note(&self, seen: Seen) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }

    fn wait(&self, condition: impl Fn(&Rules) -> bool) -> Result<()> {
        let rules = self.lock();
        let waited = self.changed.wait_timeout_while(rules, LIMIT, |rules| !condition(rules));
        let waited = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.1.timed_out() { Err(anyhow!("not within {LIMIT:?}")) } else { Ok(()) }
    }

    /// Accepts connections until the end, and has no listener while they are refused.
    fn accept(self: &Arc<Self>, host: &Host, address: SocketAddr, listener: TcpListener, relay: &Arc<Relay>) {
        let mut listener = Some(listener);
        while !self.has_ended() {
            let refusing = self.lock().refusing;
            match (&listener, refusing) {
                (Some(_), true) => listener = None,
                (None, false) => listener = listen(host, address).ok(),
                _ => {}
            }
            self.lock().listening = listener.is_some();
            self.changed.notify_all();
            let accepted = listener.as_ref().and_then(|listener| listener.accept().ok());
            let Some((socket, _)) = accepted else {
                thread::park_timeout(PERIOD);
                continue;
            };
            let (state, relay) = (Arc::clone(self), Arc::clone(relay));
            thread::spawn(move || {
                // Whatever ends a conversation, the client sees its connection end.
                let _ = relay.converse(&state, socket);
            });
        }
    }
}

fn listen(host: &Host, address: SocketAddr) -> Result<TcpListener> {
    let listener = host.within(|| TcpListener::bind(address))?;
    let listener = listener.with_context(|| format!("listen at {address} of {}", host.name()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
