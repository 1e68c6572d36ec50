//! Clients that ask a web server again and again while something changes.
//!
//! Invariant: every request is a connection of its own, and is counted once: answered, or failed with its reason. Clients end with the work
//! during which they ask.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};

use super::LIMIT;
use crate::cni_node::image;

/// Longest time for a connection, and for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between an answer and the next request of a client.
const PAUSE: Duration = Duration::from_millis(10);

/// What a client has seen.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Answers by the server that gave them.
    pub(crate) answered: BTreeMap<String, usize>,
    pub(crate) failed: Vec<String>,
}

impl Tally {
    pub(crate) fn answers(&self) -> usize {
        self.answered.values().sum()
    }
}

/// Runs `work` while each of these machines asks this server (`192.168.0.10:80`), which must answer each of them before. Gives what each has
/// seen and what the work gave; a work that fails is an error with what the clients saw.
pub(crate) fn during<T>(clients: &[(&Host, &str)], work: impl FnOnce() -> Result<T>) -> Result<(Vec<Tally>, T)> {
    let mut clients_at = Vec::new();
    for (host, server) in clients {
        let server: SocketAddr = server.parse().with_context(|| format!("server {server}"))?;
        eventually(LIMIT, || host.within(|| request(server))?)
            .with_context(|| format!("the first answer of {server} to {}", host.name()))?;
        clients_at.push((*host, server));
    }
    thread::scope(|scope| {
        let mut ends = Vec::new();
        let mut running = Vec::new();
        for (host, server) in clients_at {
            let (end, on_end) = mpsc::channel::<()>();
            ends.push(end);
            running.push(scope.spawn(move || host.within(move || ask_until(server, &on_end))));
        }
        let worked = work();
        drop(ends);
        let mut tallies = Vec::new();
        for client in running {
            tallies.push(client.join().map_err(|_| anyhow::anyhow!("a client has panicked"))??);
        }
        let worked = worked.with_context(|| format!("clients meanwhile: {tallies:?}"))?;
        Ok((tallies, worked))
    })
}

/// [`during`], in which no request fails and each client gets at least twenty answers; gives how many each got.
pub(crate) fn without_a_failure<T>(
    clients: &[(&Host, &str)],
    work: impl FnOnce() -> Result<T>,
) -> Result<(Vec<usize>, T)> {
    let (tallies, worked) = during(clients, work)?;
    for ((host, server), tally) in clients.iter().zip(&tallies) {
        let (failed, all) = (tally.failed.len(), tally.failed.len() + tally.answers());
        let reasons: Vec<_> = tally.failed.iter().take(10).collect();
        ensure!(failed == 0, "{failed} of {all} requests of {} to {server} failed: {reasons:#?}", host.name());
        ensure!(all >= 20, "{} asked {server} only {all} times", host.name());
    }
    Ok((tallies.iter().map(Tally::answers).collect(), worked))
}

fn ask_until(server: SocketAddr, on_end: &Receiver<()>) -> Tally {
    let mut tally = Tally::default();
    let begin = Instant::now();
    loop {
        let at = begin.elapsed();
        match request(server) {
            Ok(answer) => {
                let name = answer.rsplit(' ').next().unwrap_or_default().to_owned();
                *tally.answered.entry(name).or_default() += 1;
            }
            Err(error) => {
                tally.failed.push(format!("{at:?} after the begin, {:?} long: {error:#}", begin.elapsed() - at))
            }
        }
        if on_end.recv_timeout(PAUSE) == Err(RecvTimeoutError::Disconnected) {
            return tally;
        }
    }
}

/// One request; the answer is as [`cni_node::ask`](crate::cni_node::ask) gives it.
fn request(server: SocketAddr) -> Result<String> {
    let mut connection = TcpStream::connect_timeout(&server, PATIENCE).context("connect")?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n").context("ask")?;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).context("read the answer")?;
    image::answer(&String::from_utf8_lossy(&bytes))
}
