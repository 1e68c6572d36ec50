//! The data path: throughput, round-trip time and processor time of each backend beside the bare device and the raw link, and what each rule
//! on the way costs.
//!
//! Invariant: everything that is compared is measured by turns in one run; figures are medians. The raw link, the bare devices and netd have
//! nodes of their own and the same Pods; the steps share one pair of nodes, on which only rules and settings change.

mod ground;
mod load;
mod netd;
mod steps;

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::Need;
use lab::lab_kernel::{self, Guest};

use crate::machine;
use crate::options::Options;
use crate::report::Report;
use ground::{Carrier, Ground};
use load::Sample;
use netd::Served;
use steps::Step;

/// Columns of both tables.
const FIGURES: [&str; 8] = [
    "Gbit/s",
    "of base",
    "processor/KiB, ns",
    "base of it",
    "round trip, µs",
    "of base",
    "processor/trip, µs",
    "base of it",
];

/// What the kernel must have for all backends and the flowtable.
const LAB: [Need; 5] = [Need::WireGuard, Need::IpIp, Need::Vxlan, Need::Nftables, Need::Flowtable];

/// Goes on inside the lab kernel, which has every backend and the flowtable.
pub(crate) fn ensure_lab_kernel() -> Result<()> {
    lab_kernel::ensure(&LAB, Guest { limit: Duration::from_secs(3600), memory: 2048, terminal: false })
}

/// Measures on the running kernel what it has, and then all of it in the lab kernel, by a process of its own.
pub(crate) fn measure(options: &Options, report: &mut Report, words: &[String]) -> Result<()> {
    on_this_kernel(options, report)?;
    let program = std::env::current_exe().context("find this program's own path")?;
    let status = Command::new(program).args(words).args(["--only", "path-lab"]).status()?;
    ensure!(status.success(), "the part `path-lab`: {status}");
    Ok(())
}

/// Measures every backend that the running kernel has.
pub(crate) fn on_this_kernel(options: &Options, report: &mut Report) -> Result<()> {
    let all = lab_kernel::is_inside();
    let carriers: &[Carrier] = if all {
        &[Carrier::Vxlan, Carrier::HostGw, Carrier::IpIp, Carrier::WireGuard]
    } else {
        &[Carrier::Vxlan, Carrier::HostGw]
    };
    report.section("Data path: Pod to Pod through each backend, the bare device made by hand, and the raw link");
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    backends(carriers, options, report)?;
    report.section("Data path: what stands in the way of a packet through VXLAN, step by step");
    steps(all, options, report)
}

/// What carries packets on a ground.
enum Subject {
    ByHand(Ground),
    Netd(Served),
}

impl Subject {
    const fn ground(&self) -> &Ground {
        match self {
            Self::ByHand(ground) => ground,
            Self::Netd(served) => &served.ground,
        }
    }
}

/// Rows that are measured by turns.
#[derive(Default)]
struct Rows {
    /// Label, number of the row that is its base, samples.
    rows: Vec<(String, usize, Vec<Sample>)>,
    busy: usize,
}

impl Rows {
    fn add(&mut self, label: impl Into<String>, base: usize) {
        self.rows.push((label.into(), base, Vec::new()));
    }

    /// Measures row `index` once.
    fn measure(&mut self, index: usize, take: impl FnOnce() -> Result<Sample>) -> Result<()> {
        self.busy += usize::from(!machine::await_calm());
        let Some((label, _, samples)) = self.rows.get_mut(index) else { bail!("no row {index}") };
        samples.push(take().with_context(|| label.clone())?);
        Ok(())
    }

    fn print(&self, report: &Report) {
        let figures: Vec<[f64; 4]> = self.rows.iter().map(|(_, _, samples)| medians(samples)).collect();
        let row = |((label, base, _), own): (&(String, usize, Vec<Sample>), &[f64; 4])| {
            let base = figures.get(*base).copied().unwrap_or_default();
            let [throughput, per_kib, round_trip, per_trip] = *own;
            let ratio = |own: f64, base: f64| {
                if own > 0.0 && base > 0.0 { format!("{:.2}", own / base) } else { "–".to_owned() }
            };
            let known =
                |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { "–".to_owned() };
            let [base_throughput, base_kib, base_round, base_trip] = base;
            vec![
                label.clone(),
                format!("{throughput:.2}"),
                ratio(throughput, base_throughput),
                known(per_kib, 0),
                ratio(base_kib, per_kib),
                format!("{round_trip:.1}"),
                ratio(base_round, round_trip),
                known(per_trip, 1),
                ratio(base_trip, per_trip),
            ]
        };
        let head: Vec<&str> = ["path"].into_iter().chain(FIGURES).collect();
        report.table(&head, &self.rows.iter().zip(&figures).map(row).collect::<Vec<_>>());
        if self.busy > 0 {
            report.text(&format!("{} measurements began on a busy machine.", self.busy));
        }
    }
}

/// Throughput, processor per KiB, round trip, processor per trip.
fn medians(samples: &[Sample]) -> [f64; 4] {
    let median = |of: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    };
    [median(|s| s.throughput), median(|s| s.per_kib), median(|s| s.round_trip), median(|s| s.per_trip)]
}

/// From the Pod on the first node to that on the second.
fn pod_to_pod(ground: &Ground) -> Result<Sample> {
    let [first, second] = ground.pods.as_slice() else { bail!("two Pods expected") };
    load::measure(first, second, "172.7.22.2".parse::<IpAddr>()?)
}

fn backends(carriers: &[Carrier], options: &Options, report: &Report) -> Result<()> {
    let mut rows = Rows::default();
    rows.add("raw link, node to node", 0);
    let raw = Ground::new(None)?;
    let mut subjects = Vec::new();
    for carrier in carriers {
        report.progress(&format!("path: nodes for {}", carrier.name()));
        let base = rows.rows.len();
        rows.add(format!("{}, device by hand", carrier.name()), base);
        rows.add(format!("{}, netd --ip-masq", carrier.name()), base);
        subjects.push((base, Subject::ByHand(Ground::by_hand(*carrier)?)));
        subjects.push((base + 1, Subject::Netd(Served::start(*carrier, "")?)));
        // Where the kernel has it; the lab kernel does.
        if lab_kernel::is_inside() {
            rows.add(format!("{}, netd, Flowtable", carrier.name()), base);
            subjects.push((base + 2, Subject::Netd(Served::start(*carrier, r#","Flowtable":true"#)?)));
        }
    }
    for round in 0..options.rounds {
        report.progress(&format!("path: backends, round {} of {}", round + 1, options.rounds));
        rows.measure(0, || load::measure(raw.node(21)?, raw.node(22)?, "10.4.7.22".parse()?))?;
        for (index, subject) in &subjects {
            rows.measure(*index, || pod_to_pod(subject.ground()))?;
        }
    }
    rows.print(report);
    Ok(())
}

fn steps(flowtable: bool, options: &Options, report: &Report) -> Result<()> {
    let (ground, steps) = (Ground::by_hand(Carrier::Vxlan)?, Step::all(flowtable));
    let mut rows = Rows::default();
    steps.iter().for_each(|step| rows.add(step.label, 0));
    for round in 0..options.rounds {
        report.progress(&format!("path: steps, round {} of {}", round + 1, options.rounds));
        for (index, step) in steps.iter().enumerate() {
            step.take(&ground)?;
            rows.measure(index, || pod_to_pod(&ground))?;
        }
    }
    rows.print(report);
    Ok(())
}
