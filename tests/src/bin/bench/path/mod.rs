//! The data path: throughput, round-trip time and processor time of each backend beside the bare device and the raw link, and what each rule
//! on the way costs.
//!
//! Invariant: everything that is compared is measured by turns in one run. The raw link, the bare devices and netd have
//! nodes of their own and the same Pods; the steps share one pair of nodes, on which only rules and settings change.

pub(crate) mod ground;
pub(crate) mod load;
mod netd;
pub(crate) mod rows;
mod steps;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Need;
use lab::lab_kernel::{self, Guest};

use crate::machine;
use crate::options::Options;
use crate::report::Report;
use ground::{Carrier, Ground};
use load::Sample;
use netd::Served;
use rows::Rows;
use steps::Step;

/// What the kernel must have for all backends and the flowtable.
const LAB: [Need; 5] = [Need::WireGuard, Need::IpIp, Need::Vxlan, Need::Nftables, Need::Flowtable];

/// Goes on inside the lab kernel, which has every backend and the flowtable.
pub(crate) fn ensure_lab_kernel() -> Result<()> {
    lab_kernel::ensure(&LAB, Guest { limit: Duration::from_secs(3600), memory: 2048, ..Guest::default() })
}

/// Measures on the running kernel what it has, and then all of it in the lab kernel, by a process of its own.
pub(crate) fn measure(options: &Options, report: &mut Report, words: &[String]) -> Result<()> {
    on_this_kernel(options, report)?;
    crate::in_a_process_of_its_own(words, "path-lab")
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
    /// The link between the nodes.
    Raw(Ground),
    ByHand(Ground),
    Netd(Served),
}

impl Subject {
    fn measure(&self) -> Result<Sample> {
        match self {
            Self::Raw(ground) => load::measure(ground.node(21)?, ground.node(22)?, "10.4.7.22".parse()?),
            Self::ByHand(ground) => pod_to_pod(ground),
            Self::Netd(served) => pod_to_pod(&served.ground),
        }
    }
}

/// From the Pod on the first node to that on the second.
fn pod_to_pod(ground: &Ground) -> Result<Sample> {
    let [first, second] = ground.pods.as_slice() else { bail!("two Pods expected") };
    load::measure(first, second, "172.7.22.2".parse::<IpAddr>()?)
}

/// Nodes, and the row of each.
#[derive(Default)]
struct Nodes {
    rows: Rows,
    subjects: Vec<Subject>,
}

impl Nodes {
    /// Adds a row, compared with `base` or with itself, and returns its number.
    fn add(&mut self, label: impl Into<String>, base: Option<usize>, subject: Subject) -> usize {
        self.subjects.push(subject);
        self.rows.add(label, base)
    }

    fn add_carrier(&mut self, carrier: Carrier) -> Result<()> {
        let (name, flowtable) = (carrier.name(), r#","Flowtable":true"#);
        let base = Some(self.add(format!("{name}, device by hand"), None, Subject::ByHand(Ground::by_hand(carrier)?)));
        if carrier == Carrier::Vxlan {
            self.add_differences(base)?;
        }
        self.add(format!("{name}, netd --ip-masq"), base, Subject::Netd(Served::start(carrier, "", &[])?));
        let untracked: &[&str] = &["--untracked-tunnel"];
        if carrier == Carrier::Vxlan {
            let served = Served::start(carrier, "", untracked)?;
            self.add(format!("{name}, netd --ip-masq --untracked-tunnel"), base, Subject::Netd(served));
        }
        // Where the kernel has it; the lab kernel does.
        if lab_kernel::is_inside() {
            self.add(format!("{name}, netd, Flowtable"), base, Subject::Netd(Served::start(carrier, flowtable, &[])?));
            if carrier == Carrier::Vxlan {
                let served = Served::start(carrier, flowtable, untracked)?;
                self.add(format!("{name}, netd --untracked-tunnel, Flowtable"), base, Subject::Netd(served));
            }
        }
        Ok(())
    }

    /// What separates the bare device's nodes from those of netd, one thing at a time: that they are other nodes, which shows what chance
    /// does, then the rules, then whatever else netd makes.
    fn add_differences(&mut self, base: Option<usize>) -> Result<()> {
        self.add("the same, on other nodes", base, Subject::ByHand(Ground::by_hand(Carrier::Vxlan)?));
        let ruled = Ground::by_hand(Carrier::Vxlan)?;
        Step::masquerade().take(&ruled)?;
        self.add("the same, and netd's rules by hand", base, Subject::ByHand(ruled));
        let left = Served::start(Carrier::Vxlan, "", &[])?.stop()?;
        self.add("vxlan, made by netd, without netd and etcd", base, Subject::ByHand(left));
        Ok(())
    }
}

fn backends(carriers: &[Carrier], options: &Options, report: &Report) -> Result<()> {
    let mut nodes = Nodes::default();
    nodes.add("raw link, node to node", None, Subject::Raw(Ground::new(None)?));
    for carrier in carriers {
        report.progress(&format!("path: nodes for {}", carrier.name()));
        nodes.add_carrier(*carrier)?;
    }
    let Nodes { mut rows, subjects } = nodes;
    for round in 0..options.rounds {
        report.progress(&format!("path: backends, round {} of {}", round + 1, options.rounds));
        for index in rows.order(round) {
            let subject = subjects.get(index).context("nodes of a row")?;
            rows.measure(index, || subject.measure())?;
        }
    }
    rows.print(report);
    Ok(())
}

fn steps(flowtable: bool, options: &Options, report: &Report) -> Result<()> {
    let (ground, steps) = (Ground::by_hand(Carrier::Vxlan)?, Step::all(flowtable));
    let mut rows = Rows::default();
    for step in &steps {
        rows.add(step.label, Some(0));
    }
    for round in 0..options.rounds {
        report.progress(&format!("path: steps, round {} of {}", round + 1, options.rounds));
        for index in rows.order(round) {
            let Some(step) = steps.get(index) else { bail!("no step {index}") };
            step.take(&ground)?;
            rows.measure(index, || pod_to_pod(&ground))?;
        }
    }
    rows.print(report);
    Ok(())
}
