//! A daemon that is started beside a server which holds everything already: how long it takes, and what it uses.
//!
//! Invariant: the time from the list's end is between two lines of the daemon's log, by the times in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Host, Process};

use super::LIMIT;
use super::flow::received;
use crate::machine;
use crate::proxy::time_of_day;
use crate::report::ms;
use crate::samples::Samples;
use crate::usage;

/// The heads of the columns, behind the row's name.
pub(super) const HEAD: [&str; 8] = [
    "whole",
    "least–most",
    "from the list's end",
    "least–most",
    "received, MB",
    "processor",
    "memory, most, MiB",
    "resident behind it, MiB",
];

/// The starts of one kind.
#[derive(Debug, Default)]
pub(super) struct Starts {
    whole: Samples,
    fill: Samples,
    processor: Samples,
    bytes: u64,
    most_resident: u64,
    resident: u64,
}

/// What a daemon says when everything has been listed, and when the kernel has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines {
    pub(super) listed: &'static str,
    pub(super) ready: &'static str,
}

impl Starts {
    /// Starts a daemon with `launch` and waits until it is done.
    pub(super) fn measure(
        &mut self,
        host: &Host,
        lines: Lines,
        launch: impl FnOnce() -> Result<Process>,
    ) -> Result<Process> {
        let (before, started) = (received(host)?, Instant::now());
        let daemon = launch()?;
        let ready = daemon.wait_for_line(lines.ready, LIMIT)?;
        self.whole.push(started.elapsed());
        let listed = daemon.wait_for_line(lines.listed, LIMIT)?;
        let times = time_of_day(&listed).zip(time_of_day(&ready));
        let fill = times.and_then(|(listed, ready)| ready.checked_sub(listed));
        self.fill.push(fill.with_context(|| format!("no times in {listed:?} or {ready:?}"))?);
        self.bytes = received(host)? - before;
        let used = usage::of(daemon.pid())?;
        self.processor.push(used.processor);
        self.most_resident = self.most_resident.max(used.most_resident);
        Ok(daemon)
    }

    /// Takes a start that something else has waited for.
    pub(super) fn push(&mut self, whole: Duration, bytes: u64, pid: i32) -> Result<()> {
        let used = usage::of(pid)?;
        self.whole.push(whole);
        self.bytes = bytes;
        self.processor.push(used.processor);
        self.most_resident = self.most_resident.max(used.most_resident);
        self.note_resident(pid)
    }

    /// What is resident now, when nothing happens any more.
    pub(super) fn note_resident(&mut self, pid: i32) -> Result<()> {
        self.resident = self.resident.max(usage::of(pid)?.resident);
        Ok(())
    }

    /// The columns of [`HEAD`].
    pub(super) fn columns(&self) -> Vec<String> {
        let spread = |samples: &Samples| format!("{}–{}", ms(samples.least()), ms(samples.most()));
        let fill = if self.fill.len() == 0 {
            [(); 2].map(|()| "–".to_owned())
        } else {
            [ms(self.fill.median()), spread(&self.fill)]
        };
        let [fill, fill_spread] = fill;
        vec![
            ms(self.whole.median()),
            spread(&self.whole),
            fill,
            fill_spread,
            format!("{:.1}", megabytes(self.bytes)),
            ms(self.processor.median()),
            format!("{:.1}", machine::mebibytes(self.most_resident)),
            format!("{:.1}", machine::mebibytes(self.resident)),
        ]
    }
}

/// Millions of bytes.
fn megabytes(bytes: u64) -> f64 {
    // What a daemon receives is far below 2^52 bytes.
    #[allow(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / 1e6
}
