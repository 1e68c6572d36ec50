//! The data path through a virtual address, beside the same connections straight to the Pod: one Service, and one in the midst of many.
//!
//! Invariant: everything that is compared is measured by turns in one run. Each number of Services has nodes of its own, on which the
//! direct way, the one through the virtual address and that by a rule by hand end at the same server. nftables is measured on the running kernel, IPVS on one
//! that has it.

mod ground;
mod web;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Need;
use lab::lab_kernel::{self, Guest};

use crate::machine;
use crate::options::Options;
use crate::path::load;
use crate::path::rows::Rows;
use crate::report::Report;
use ground::Served;
use web::Web;

/// Numbers of Services, and a small one for a rehearsal.
const SERVICES: [usize; 2] = [1, 10_000];
const REHEARSED: [usize; 2] = [1, 20];

/// Goes on inside the lab kernel when the running one has no IPVS.
pub(crate) fn ensure_lab_kernel() -> Result<()> {
    let guest = Guest { limit: Duration::from_secs(3600), memory: 2048, ..Guest::default() };
    lab_kernel::ensure(&[Need::IpVs, Need::Dummy, Need::Nftables], guest)
}

/// Measures nftables on the running kernel, and then IPVS where it is, by a process of its own.
pub(crate) fn measure(options: &Options, report: &Report, words: &[String]) -> Result<()> {
    on("nftables", options, report)?;
    crate::in_a_process_of_its_own(words, "vip-ipvs")
}

/// Measures IPVS.
pub(crate) fn on_ipvs(options: &Options, report: &Report) -> Result<()> {
    on("ipvs", options, report)
}

/// A way to the server.
#[derive(Debug, Clone, Copy)]
enum Way {
    Direct,
    /// By one rule of nftables that translates the address, and by nothing of `ipvs-proxy`.
    ByHand,
    Virtual,
}

impl Way {
    /// The first one is what the others are compared with.
    const ALL: [Self; 3] = [Self::Direct, Self::ByHand, Self::Virtual];

    fn label(self, services: usize) -> String {
        match self {
            Self::Direct => format!("straight to the Pod, beside {services}"),
            Self::ByHand => format!("by one rule by hand, beside {services}"),
            Self::Virtual => format!("through a Service, one of {services}"),
        }
    }
}

fn on(mode: &str, options: &Options, report: &Report) -> Result<()> {
    report.section(&format!("ipvs-proxy on {mode}: a TCP stream and UDP round trips through a virtual address"));
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let counts = if machine::is_rehearsal() { REHEARSED } else { SERVICES };
    let mut grounds = Vec::new();
    for count in counts {
        report.progress(&format!("vip, {mode}: nodes with {count} Services"));
        grounds.push(Served::start(mode, count)?);
    }
    let (mut rows, mut web) = (Rows::default(), Web::default());
    let mut ways = Vec::new();
    for (index, count) in counts.iter().enumerate() {
        let mut base = None;
        for way in Way::ALL {
            let row = rows.add(way.label(*count), base);
            base = base.or(Some(row));
            ways.push((index, way));
        }
    }
    for round in 0..options.rounds {
        report.progress(&format!("vip, {mode}: round {} of {}", round + 1, options.rounds));
        for row in rows.order(round) {
            let (index, way) = *ways.get(row).context("no way")?;
            let Some(served) = grounds.get(index) else { bail!("no nodes {index}") };
            let (from, to) = served.ends()?;
            rows.measure(row, || load::measure_by(from, to, served.echo(way)?))?;
            web.measure(row, rows.label(row), from, served.web(way))?;
        }
    }
    rows.print(report);
    report.section(&format!("ipvs-proxy on {mode}: wrk, 16 connections to nginx through a virtual address"));
    web.print(report);
    Ok(())
}
