//! Heartbeats: changes of the Nodes' status alone.
//!
//! Invariant: every heartbeat that counts was received: the bytes that came in say so.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::kubernetes::Release;
use serde_json::json;

use super::Stage;
use super::flow::{Flow, Used};
use super::nodes::DEVICE;
use super::objects::Node;
use crate::machine::is_rehearsal;
use crate::netd::watch::Watch;
use crate::proxy::messages::Messages;
use crate::report::ms;

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
/// Heartbeats that are written together, each [`PACE`].
const TOGETHER: usize = 10;
const PACE: Duration = Duration::from_millis(20);
/// Clients that patch at the same time.
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
        let node = stage.node()?;
        let watch = Watch::start(node, DEVICE)?;
        let flow = Flow::start(node, pid)?;
        let (count, took) = send(stage, nodes, way)?;
        let used = flow.end()?;
        ensure!(used.bytes > LEAST * count as u64, "{count} heartbeats were sent and {} bytes came", used.bytes);
        let announced = watch.changes()?;
        // Traced it is slower, so what it sends is counted in a storm that nothing is timed in.
        let messages = Messages::start(node, pid)?;
        let (before, flow) = (messages.count()?, Flow::start(node, pid)?);
        let (again, _) = send(stage, nodes, way)?;
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

/// Sends heartbeats; how many, and for how long.
fn send(stage: &Stage, nodes: usize, way: Way) -> Result<(usize, Duration)> {
    let long = if is_rehearsal() { REHEARSED } else { LONG };
    match way {
        Way::Beneath => beneath(stage, nodes, long),
        Way::Patches => patches(stage, nodes, long),
    }
}

fn beneath(stage: &Stage, nodes: usize, long: Duration) -> Result<(usize, Duration)> {
    let release: Release = stage.api.release();
    let batches = usize::try_from(long.as_millis() / PACE.as_millis()).unwrap_or(usize::MAX);
    let started = Instant::now();
    for batch in 0..batches {
        let due = PACE * u32::try_from(batch).unwrap_or(u32::MAX);
        thread::sleep(due.saturating_sub(started.elapsed()));
        let entry = |number: usize| {
            let node = Node::new((batch * TOGETHER + number) % nodes);
            (node.key(release), node.object(batch + 1).to_string())
        };
        stage.store.put_all(&(0..TOGETHER.min(nodes)).map(entry).collect::<Vec<_>>(), None)?;
    }
    Ok((batches * TOGETHER.min(nodes), started.elapsed().max(long)))
}

fn patches(stage: &Stage, nodes: usize, long: Duration) -> Result<(usize, Duration)> {
    let started = Instant::now();
    let pause = Duration::from_secs(1) / u32::try_from(RATE / CLIENTS).unwrap_or(1);
    let one = |client: usize| -> Result<usize> {
        let server = stage.api.another_client();
        let mut sent = 0;
        while started.elapsed() < long {
            let node = Node::new((sent * CLIENTS + client) % nodes);
            // Another time than in any storm before, or nothing would change.
            let beat = usize::try_from(started.elapsed().as_millis()).unwrap_or(0) + sent;
            let patch = json!({"status": {"conditions": Node::conditions(beat)}});
            let path = format!("/api/v1/nodes/{}/status", node.name());
            server
                .ask("PATCH", &path, Some(("application/strategic-merge-patch+json", &patch)))?
                .object()
                .context(path)?;
            sent += 1;
            let due = pause * u32::try_from(sent).unwrap_or(u32::MAX);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
        Ok(sent)
    };
    thread::scope(|scope| {
        let one = &one;
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || one(client))).collect();
        let mut count = 0;
        for client in clients {
            count += client.join().map_err(|_| anyhow!("a client has ended"))??;
        }
        Ok((count, started.elapsed()))
    })
}
