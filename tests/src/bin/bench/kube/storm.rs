//! Heartbeats: changes of the Nodes' status alone.
//!
//! Invariants: every heartbeat that counts was received: the bytes that came in say so. What netd sends to the kernel in its audit of each
//! minute is not counted: it makes one right before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::kubernetes::Release;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Stage;
use super::flow::{Flow, Used};
use super::nodes::DEVICE;
use super::objects::Node;
use crate::machine::is_rehearsal;
use crate::netd::watch::Watch;
use crate::proxy::messages::Messages;
use crate::report::ms;
use crate::store::written;

/// The heads of the columns, behind the row's name.
pub(super) const HEAD: [&str; 7] = [
    "heartbeats",
    "a second",
    "received, bytes of each",
    "processor of each",
    "part of a processor",
    "kernel changes",
    "netlink messages",
];

/// Heartbeats of a second that are meant.
const RATE: usize = 500;
/// For so long.
const LONG: Duration = Duration::from_secs(10);
const REHEARSED: Duration = Duration::from_millis(400);
/// Heartbeats that are written together beneath the server.
const TOGETHER: usize = 10;
/// Clients that send at the same time, each over a connection of its own.
const CLIENTS: usize = 6;
/// The least that a heartbeat has, as the server writes it.
const LEAST: u64 = 8_000;

/// How heartbeats come into the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Written into its etcd, beneath it: as many as are meant.
    Beneath,
    /// As kubelet sends them, by patches of the status: as many as the server takes beside everything else here.
    Patches,
}

/// What one storm gave.
#[derive(Debug, Default)]
pub(super) struct Storm {
    count: usize,
    took: Duration,
    used: Used,
    announced: usize,
    messages: usize,
}

impl Way {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Beneath => "written beneath the server",
            Self::Patches => "patches of the status, 6 clients",
        }
    }
}

impl Storm {
    /// Has so many Nodes send heartbeats while the daemon `pid` follows them.
    pub(super) fn measure(stage: &Stage, pid: i32, nodes: usize, way: Way) -> Result<Self> {
        let (node, long) = (stage.node()?, if is_rehearsal() { REHEARSED } else { LONG });
        let prepare = |storm: usize| Prepared::new(stage.api.release(), nodes, (way, storm), long);
        let prepared = prepare(0);
        let watch = Watch::start(node, DEVICE)?;
        audit(pid)?;
        let flow = Flow::start(node, pid)?;
        let (count, took) = prepared.send(stage, long)?;
        let used = flow.end()?;
        ensure!(used.bytes > LEAST * count as u64, "{count} heartbeats were sent and {} bytes came", used.bytes);
        let announced = watch.changes()?;
        // Traced it is slower, so what it sends is counted in a storm that nothing is timed in.
        let prepared = prepare(1);
        let messages = Messages::start(node, pid)?;
        audit(pid)?;
        let flow = Flow::start(node, pid)?;
        let before = messages.count()?;
        let (again, _) = prepared.send(stage, long)?;
        let came = flow.end()?.bytes;
        ensure!(came > LEAST * again as u64, "{again} heartbeats were sent and {came} bytes came");
        let sent = messages.count()? - before;
        messages.end()?;
        Ok(Self { count, took, used, announced, messages: sent })
    }

    /// The columns of [`HEAD`].
    pub(super) fn columns(&self) -> Vec<String> {
        let (bytes, processor) = self.used.each(self.count);
        let seconds = self.took.as_secs_f64();
        let count = f64::from(u32::try_from(self.count).unwrap_or(u32::MAX));
        vec![
            self.count.to_string(),
            format!("{:.0}", count / seconds),
            bytes.to_string(),
            ms(processor),
            format!("{:.1} %", self.used.processor.as_secs_f64() / seconds * 100.0),
            self.announced.to_string(),
            self.messages.to_string(),
        ]
    }
}

/// Has the daemon make its audit of each minute now: what it sends in the next minute is for something else. Whoever calls this waits
/// until it rests again.
fn audit(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGHUP).context("ask netd for an audit")
}

/// A storm's requests, written before it begins: they would cost the processor that is measured.
#[derive(Debug)]
enum Prepared {
    /// Transactions of etcd, with the heartbeats in each.
    Beneath(Vec<(String, usize)>),
    /// Paths and patches.
    Patches(Vec<(String, String)>),
}

impl Prepared {
    /// As many as are meant in that time, of one Node after the other.
    fn new(release: Release, nodes: usize, (way, storm): (Way, usize), long: Duration) -> Self {
        let count = RATE * usize::try_from(long.as_millis()).unwrap_or(usize::MAX) / 1000;
        // Another time than in any storm before, or a patch would change nothing.
        let first = if way == Way::Patches { 40_000 } else { 1 };
        let beat = |index: usize| first + storm * 20_000 + index / nodes;
        let node = |index: usize| Node::new(index % nodes);
        match way {
            Way::Beneath => {
                let entry = |index: usize| (node(index).key(release), node(index).object(beat(index)).to_string());
                // A transaction takes each key once.
                let together = TOGETHER.min(nodes);
                let batch = |first: usize| written(&(first..first + together).map(entry).collect::<Vec<_>>(), None);
                Self::Beneath((0..count).step_by(together).map(|first| (batch(first), together)).collect())
            }
            Way::Patches => {
                let patch = |index: usize| {
                    let patch = json!({"status": {"conditions": Node::conditions(beat(index))}});
                    (format!("/api/v1/nodes/{}/status", node(index).name()), patch.to_string())
                };
                Self::Patches((0..count).map(patch).collect())
            }
        }
    }

    /// Sends them at the pace that is meant, or as fast as they are taken, for so long; how many heartbeats were taken, and in which time.
    fn send(&self, stage: &Stage, long: Duration) -> Result<(usize, Duration)> {
        match self {
            Self::Beneath(batches) => {
                let together = batches.first().map_or(0, |(_, together)| *together);
                let put = |(batch, _): &(String, usize)| stage.store.put_written(batch);
                let (count, took) = paced(batches, long, || Ok(put))?;
                Ok((count * together, took))
            }
            Self::Patches(patches) => paced(patches, long, || {
                let server = stage.api.another_client();
                Ok(move |(path, patch): &(String, String)| {
                    let code = server.send("PATCH", path, ("application/strategic-merge-patch+json", patch))?;
                    ensure!(code == 200, "PATCH {path}: {code}");
                    Ok(())
                })
            }),
        }
    }
}

/// Has [`CLIENTS`] send these, evenly within `long`, and what is late at once; ends with that time. How many were sent, and in which time.
fn paced<T: Sync, S: Fn(&T) -> Result<()>>(
    requests: &[T],
    long: Duration,
    client: impl Fn() -> Result<S> + Sync,
) -> Result<(usize, Duration)> {
    let pause = long / u32::try_from(requests.len()).unwrap_or(u32::MAX).max(1);
    let (started, next) = (Instant::now(), AtomicUsize::new(0));
    let one = || -> Result<usize> {
        let (send, mut sent) = (client()?, 0);
        while started.elapsed() < long {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(index) else { break };
            let due = pause * u32::try_from(index).unwrap_or(u32::MAX);
            thread::sleep(due.saturating_sub(started.elapsed()));
            send(request)?;
            sent += 1;
        }
        Ok(sent)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one)).collect();
        let mut count = 0;
        for client in clients {
            count += client.join().map_err(|_| anyhow!("a client has ended"))??;
        }
        Ok((count, started.elapsed().max(long)))
    })
}
