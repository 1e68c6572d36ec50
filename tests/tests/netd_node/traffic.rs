//! Traffic between two Pods while something changes below it, with its losses counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{Place, Pod, Process, echo, eventually};

use super::SOON;

/// How long an answer over TCP may take: far less than what a broken connection would need to be noticed.
const ANSWER: Duration = Duration::from_secs(60);

/// How long the answer to a datagram may take on a busy machine; without one by then it is lost.
const LATE: Duration = Duration::from_secs(5);

/// Pause between two requests.
const PAUSE: Duration = Duration::from_millis(10);

/// One TCP connection and a row of datagrams, from Pod to Pod or to a Service, until it is stopped.
pub(crate) struct Traffic {
    running: Arc<AtomicBool>,
    answers: Arc<AtomicU32>,
    tcp: JoinHandle<Result<u32>>,
    udp: JoinHandle<(u32, u32)>,
    _server: Option<Process>,
}

/// What was counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// Answers on the one connection; each was complete.
    pub(crate) answers: u32,
    /// Datagrams sent.
    pub(crate) datagrams: u32,
    /// Datagrams without an answer.
    pub(crate) lost: u32,
}

impl Traffic {
    /// Starts a server in `to`, whose address is `address`, and requests from `from`.
    pub(crate) fn start(from: Pod, to: &Pod, address: &str) -> Result<Self> {
        let server = echo::serve(to, "web", 80)?;
        let target: SocketAddr = format!("{address}:80").parse()?;
        Self::begin(from, target, target, Some(server))
    }

    /// The same from anywhere to servers that answer already: the connection's, and the datagrams'.
    pub(crate) fn to_servers(from: impl Place + Send + 'static, stream: &str, datagrams: &str) -> Result<Self> {
        Self::begin(from, stream.parse()?, datagrams.parse()?, None)
    }

    fn begin(
        from: impl Place + Send + 'static,
        stream: SocketAddr,
        datagrams: SocketAddr,
        server: Option<Process>,
    ) -> Result<Self> {
        let running = Arc::new(AtomicBool::new(true));
        let answers = Arc::new(AtomicU32::new(0));
        let from = Arc::new(from);
        let mut connection = echo::Connection::open(&*from, stream, ANSWER)?;
        let (goes, counted) = (Arc::clone(&running), Arc::clone(&answers));
        let tcp = std::thread::spawn(move || {
            while goes.load(Ordering::Relaxed) {
                connection.ask().context("the connection broke")?;
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
            Ok(counted.load(Ordering::Relaxed))
        });
        let goes = Arc::clone(&running);
        let udp = std::thread::spawn(move || {
            let (mut sent, mut lost) = (0, 0);
            while goes.load(Ordering::Relaxed) {
                sent += 1;
                if echo::ask_udp(&*from, datagrams, LATE).is_err() {
                    lost += 1;
                }
                std::thread::sleep(PAUSE);
            }
            (sent, lost)
        });
        let traffic = Self { running, answers, tcp, udp, _server: server };
        traffic.flows()?;
        Ok(traffic)
    }

    /// Waits for ten more answers on the connection.
    pub(crate) fn flows(&self) -> Result<()> {
        let before = self.answers.load(Ordering::Relaxed);
        eventually(2 * SOON, || {
            let more = self.answers.load(Ordering::Relaxed) - before;
            ensure!(more >= 10, "{more} answers more");
            Ok(())
        })
    }

    /// Waits until answers come again, stops and counts. A connection that broke is an error.
    pub(crate) fn stop(self) -> Result<Counts> {
        let flows = self.flows();
        self.running.store(false, Ordering::Relaxed);
        let answers = self.tcp.join().map_err(|_| anyhow!("the client panicked"))?;
        let (datagrams, lost) = self.udp.join().map_err(|_| anyhow!("the client panicked"))?;
        flows.with_context(|| format!("{lost} of {datagrams} datagrams lost"))?;
        let counts = Counts { answers: answers?, datagrams, lost };
        eprintln!("{counts:?}");
        Ok(counts)
    }
}
