//! One object that changes among many: the time until the kernel has it, and what the daemon receives and needs for it.
//!
//! Invariant: the time begins when the node's kernel receives the first packet of the event, by the packet's time stamp, and ends with the
//! kernel's own announcement. The server is asked from its own machine, so nothing else of that size comes to the node.

use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use lab::Host;

use super::flow::{Flow, Used};
use super::latency::Latency;
use crate::arrival::Arrivals;
use crate::machine::is_rehearsal;
use crate::report::ms;
use crate::samples::Samples;

/// The heads of the columns, behind the row's name.
pub(super) const HEAD: [&str; 7] =
    ["median", "least–most", "p99", "p99 by its own metrics", "changes", "received, bytes", "processor of each"];

/// How often something is changed, an even number: the last change restores the first state.
const TURNS: usize = 200;
const REHEARSED: usize = 4;

/// A packet with the beginning of an event: every event has more, and nothing else that comes in has as much.
pub(super) const EVENT: usize = 900;

/// What the changes of one kind gave.
#[derive(Debug, Default)]
pub(super) struct Changes {
    own: Samples,
    used: Used,
    count: usize,
    /// What the daemon itself says, where it is asked.
    latency: Latency,
}

impl Changes {
    /// Makes changes to and fro: `change` has the server take one, `wait` returns when the kernel had it.
    pub(super) fn measure(
        &mut self,
        (host, pid): (&Host, i32),
        change: impl Fn(bool) -> Result<()>,
        wait: impl Fn(bool) -> Result<SystemTime> + Sync,
    ) -> Result<()> {
        let arrivals = Arrivals::start(host)?;
        let turns = if is_rehearsal() { REHEARSED } else { TURNS };
        let flow = Flow::start(host, pid)?;
        for turn in 0..turns {
            let changed = turn % 2 == 0;
            arrivals.discard()?;
            let at = thread::scope(|scope| {
                let waiting = scope.spawn(|| wait(changed));
                change(changed)?;
                waiting.join().map_err(|_| anyhow!("the thread that waits has ended"))?
            })?;
            let arrived = arrivals.first_of(EVENT)?.context("no packet with an event came")?;
            self.own.push(at.duration_since(arrived)?);
        }
        let used = flow.end()?;
        self.used = Used { bytes: self.used.bytes + used.bytes, processor: self.used.processor + used.processor };
        self.count += turns;
        Ok(())
    }

    /// The same beside an `ipvs-proxy`, which says itself how long each took.
    pub(super) fn measure_with_metrics(
        &mut self,
        (host, pid): (&Host, i32),
        change: impl Fn(bool) -> Result<()>,
        wait: impl Fn(bool) -> Result<SystemTime> + Sync,
    ) -> Result<()> {
        let before = Latency::read(host)?;
        self.measure((host, pid), change, wait)?;
        let latency = Latency::read(host)?.since(&before);
        self.latency = latency.and(&self.latency);
        Ok(())
    }

    /// The columns of [`HEAD`].
    pub(super) fn columns(&self) -> Vec<String> {
        let (bytes, processor) = self.used.each(self.count);
        vec![
            ms(self.own.median()),
            format!("{}–{}", ms(self.own.least()), ms(self.own.most())),
            ms(self.own.p99()),
            self.latency.p99(),
            self.count.to_string(),
            bytes.to_string(),
            ms(processor),
        ]
    }
}
