//! Clients that ask a server again and again while something changes.
//!
//! Invariant: a request is tried until it is answered, twenty times at most, each try over a connection or socket of its own. A try without an
//! answer is a cut; a request without an answer by any try has failed. Each is kept with its moment and its reason. Clients end with the work
//! during which they ask.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, allowing_for_load, eventually, lab_kernel};

use super::LIMIT;
use crate::cni_node::image;

/// Longest time for a connection, which kernels make by themselves.
fn patience() -> Duration {
    Duration::from_secs(if lab_kernel::is_inside() { 30 } else { 5 })
}

/// Longest time for each part of an answer, and for a datagram: a server's process gives it, in its turn. A server that has gone in the middle
/// of one is waited for as long.
fn patience_for_an_answer() -> Duration {
    allowing_for_load(patience()).min(3 * patience())
}

/// Between a request and the next one of each of so many clients. A request starts three programs, which cost the one processor of the lab kernel
/// as much as a second of everything else, whoever asks.
fn pause(clients: usize) -> Duration {
    if lab_kernel::is_inside() {
        Duration::from_millis(500).saturating_mul(u32::try_from(clients).unwrap_or(u32::MAX))
    } else {
        Duration::from_millis(10)
    }
}

const TRIES: usize = 20;
/// The name that clients of a name server ask for, and the address that it has there.
pub(crate) const NAME: &str = "web.default.svc.cluster.local";
pub(crate) const ADDRESS: [u8; 4] = [192, 168, 0, 10];

/// How far a try came that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There was no connection: the rules, or what the kernel has of an earlier one, led to nobody.
    Connection,
    /// There was, or a datagram was sent, and whoever was reached has said nothing, or not all.
    Answer,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "no connection",
            Self::Answer => "no whole answer",
        })
    }
}

/// A try without an answer.
#[derive(Debug)]
pub(crate) struct Cut {
    begun: Instant,
    lasted: Duration,
    stage: Stage,
    reason: String,
}

/// What a client has seen.
#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    /// Answers by the server that gave them.
    pub(crate) answered: BTreeMap<String, usize>,
    pub(crate) cut: Vec<Cut>,
    /// Requests that no try of was answered.
    pub(crate) failed: usize,
}

/// What a client asks.
#[derive(Debug, Clone, Copy)]
enum Question {
    /// The image's web server.
    Web(SocketAddr),
    /// A name server, by UDP.
    Name(SocketAddr),
}

impl Tally {
    pub(crate) fn answers(&self) -> usize {
        self.answered.values().sum()
    }

    /// Fails when a request has, or when a try that began after this moment was cut.
    pub(crate) fn not_cut_after(&self, moment: Instant) -> Result<()> {
        let late: Vec<&Cut> = self.cut.iter().filter(|cut| cut.begun > moment).collect();
        let after = moment.saturating_duration_since(self.begun);
        let of = |stage: Stage| late.iter().filter(|cut| cut.stage == stage).count();
        let (unconnected, unanswered) = (of(Stage::Connection), of(Stage::Answer));
        ensure!(
            self.failed == 0 && late.is_empty(),
            "of tries that began {after:?} after the begin or later {unconnected} got no connection and {unanswered} no whole answer; {self}"
        );
        ensure!(self.answers() >= 20, "only {} answers", self.answers());
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (answers, cut, failed) = (self.answers(), self.cut.len(), self.failed);
        write!(f, "{answers} requests answered, {failed} failed, {cut} tries cut")?;
        for cut in self.cut.iter().take(10) {
            let at = cut.begun.saturating_duration_since(self.begun);
            write!(f, "\n  {at:?} after the begin, {:?} long: {}", cut.lasted, cut.reason)?;
        }
        Ok(())
    }
}

impl Question {
    /// `192.168.0.10:80`, or `dns:192.168.0.2:53`.
    fn parse(text: &str) -> Result<Self> {
        let read = |text: &str| text.parse().with_context(|| format!("server {text}"));
        match text.strip_prefix("dns:") {
            Some(server) => read(server).map(Self::Name),
            None => read(text).map(Self::Web),
        }
    }

    fn ask(self) -> Result<String> {
        match self {
            Self::Web(server) => request(server),
            Self::Name(server) => query(server),
        }
    }
}

/// Runs `work` while each of these machines asks a server, which must answer each of them before: a web server (`192.168.0.10:80`), or a name
/// server by UDP (`dns:192.168.0.2:53`). Gives what each has seen and what the work gave; a work that fails is an error with what the clients
/// saw.
pub(crate) fn during<T>(clients: &[(&Host, &str)], work: impl FnOnce() -> Result<T>) -> Result<(Vec<Tally>, T)> {
    let mut ready = Vec::new();
    for (host, server) in clients {
        let question = Question::parse(server)?;
        eventually(LIMIT, || host.within(|| question.ask())?)
            .with_context(|| format!("the first answer of {server} to {}", host.name()))?;
        ready.push((*host, question));
    }
    let pause = pause(ready.len());
    thread::scope(|scope| {
        let mut ends = Vec::new();
        let mut running = Vec::new();
        for (host, question) in ready {
            let (end, on_end) = mpsc::channel::<()>();
            ends.push(end);
            running.push(scope.spawn(move || host.within(move || ask_until(question, pause, &on_end))));
        }
        let worked = work();
        drop(ends);
        let mut tallies = Vec::new();
        for client in running {
            tallies.push(client.join().map_err(|_| anyhow::anyhow!("a client has panicked"))??);
        }
        let seen = || tallies.iter().map(|tally| format!("\n{tally}")).collect::<String>();
        let worked = worked.with_context(|| format!("clients meanwhile: {}", seen()))?;
        Ok((tallies, worked))
    })
}

/// [`during`], in which no try is cut and each client gets at least twenty answers; gives how many each got.
pub(crate) fn without_a_failure<T>(
    clients: &[(&Host, &str)],
    work: impl FnOnce() -> Result<T>,
) -> Result<(Vec<usize>, T)> {
    let (tallies, worked) = during(clients, work)?;
    for ((host, server), tally) in clients.iter().zip(&tallies) {
        tally.not_cut_after(tally.begun).with_context(|| format!("{} asking {server}", host.name()))?;
    }
    Ok((tallies.iter().map(Tally::answers).collect(), worked))
}

fn ask_until(question: Question, pause: Duration, on_end: &Receiver<()>) -> Tally {
    let mut tally = Tally { begun: Instant::now(), answered: BTreeMap::new(), cut: Vec::new(), failed: 0 };
    loop {
        let answer = (0..TRIES).find_map(|_| {
            let begun = Instant::now();
            let cut = |error: anyhow::Error| {
                let stage = error.downcast_ref().copied().unwrap_or(Stage::Answer);
                Cut { begun, lasted: begun.elapsed(), stage, reason: format!("{error:#}") }
            };
            question.ask().map_err(|error| tally.cut.push(cut(error))).ok()
        });
        match answer {
            Some(answer) => {
                let name = answer.rsplit(' ').next().unwrap_or_default().to_owned();
                *tally.answered.entry(name).or_default() += 1;
            }
            None => tally.failed += 1,
        }
        if on_end.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return tally;
        }
    }
}

/// One request; the answer is as [`cni_node::ask`](crate::cni_node::ask) gives it.
fn request(server: SocketAddr) -> Result<String> {
    let mut connection = TcpStream::connect_timeout(&server, patience()).context(Stage::Connection)?;
    connection.set_read_timeout(Some(patience_for_an_answer()))?;
    connection.set_write_timeout(Some(patience_for_an_answer()))?;
    connection.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n").context("ask")?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).context(Stage::Answer)?;
    image::answer(&String::from_utf8_lossy(&bytes))
}

/// One question of a resolver (RFC 1035, section 4.1): the answer must have the address.
fn query(server: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(patience_for_an_answer()))?;
    socket.connect(server)?;
    // An identifier, "recursion desired", one question.
    let mut question = vec![0x4e, 0x44, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    // The end of the name; type A, class IN.
    question.extend([0, 0, 1, 0, 1]);
    socket.send(&question).context("send the question")?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context(Stage::Answer)?;
    let answer = answer.get(..length).unwrap_or_default();
    ensure!(answer.starts_with(&question[..2]) && answer.ends_with(&ADDRESS), "not the answer: {answer:?}");
    Ok(NAME.to_owned())
}
