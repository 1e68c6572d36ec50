//! The benchmark: the three programs next to their peers and to what the kernel itself costs, in one run on one machine.
//!
//! Invariant: everything happens inside machines of the lab, in bounded count and time, and every figure stands beside the figure of
//! a peer or a floor that was taken in the same run, alternating with it. Nothing is judged: figures are printed, and only a call that
//! fails makes the benchmark fail.

#![allow(clippy::print_stdout, reason = "a report is its purpose")]

mod arrival;
mod cni;
mod instructions;
mod kube;
mod machine;
mod netd;
mod options;
mod path;
mod proxy;
mod report;
mod samples;
mod store;
mod usage;
mod vip;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use options::{Options, Part};
use report::Report;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().map(String::as_str) == Some(cni::INSIDE) {
        return cni::inside();
    }
    let options = Options::parse(&words)?;
    // First of all: this may go on as the same program inside the lab kernel.
    match options.only {
        Some(Part::ProxyIpvs | Part::Local) => proxy::ensure_lab_kernel()?,
        Some(Part::KubeIpvs) => kube::on_ipvs::ensure_lab_kernel()?,
        Some(Part::PathLab) => path::ensure_lab_kernel()?,
        Some(Part::VipIpvs) => vip::ensure_lab_kernel()?,
        _ => {}
    }
    let mut report = Report::new(options.markdown);
    if options.only.is_none() {
        report.title("Benchmarks");
        report.text(&format!("`bench {}`", words.join(" ")));
    }
    if options.measures(Part::Cni) {
        cni::measure(&options, &mut report)?;
    }
    if options.measures(Part::Netd) {
        netd::measure(&options, &mut report)?;
    }
    if options.measures(Part::Path) {
        path::measure(&options, &mut report, &words)?;
    }
    if options.measures(Part::Proxy) {
        proxy::measure(&options, &mut report, &words)?;
    }
    if options.measures(Part::Vip) {
        vip::measure(&options, &report, &words)?;
    }
    match options.only {
        Some(Part::ProxyIpvs) => proxy::on_ipvs(&options, &mut report),
        Some(Part::Kube) => kube::measure(&options, &mut report),
        Some(Part::Instructions) => instructions::measure(&report, &words),
        Some(Part::KubeIpvs) => kube::on_ipvs::measure(&options, &report),
        Some(Part::Local) => proxy::local::measure(&options, &mut report),
        Some(Part::PathLab) => path::on_this_kernel(&options, &mut report),
        Some(Part::VipIpvs) => vip::on_ipvs(&options, &report),
        _ => Ok(()),
    }
}

/// Goes on with `part`, which needs a kernel that may be another one than the running kernel.
pub(crate) fn in_a_process_of_its_own(words: &[String], part: &str) -> Result<()> {
    let program = std::env::current_exe().context("find this program's own path")?;
    let status = Command::new(program).args(words).args(["--only", part]).status()?;
    ensure!(status.success(), "the part `{part}`: {status}");
    Ok(())
}
