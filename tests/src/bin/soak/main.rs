//! The soak: a cluster of five nodes under faults for as long as is asked, with a checker of invariants beside it, and a report.
//!
//! Invariant: exit status 0 means that no invariant was broken and no action failed that must succeed. The schedule depends on the seed
//! alone. Whatever way it ends, machines end with the process that made them.

#![allow(clippy::print_stdout, reason = "a report is its purpose")]

mod act;
mod bounds;
mod count;
mod evidence;
mod judge;
mod ledger;
mod node;
mod options;
mod paths;
mod prober;
mod quiet;
mod report;
mod run;
mod shared;
mod violate;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lab::lab_kernel::{self, Guest};

use options::Options;
use run::Run;
use shared::{Shared, Violation};

fn main() -> ExitCode {
    match soak() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}\n{}", lab::logs());
            ExitCode::FAILURE
        }
    }
}

fn soak() -> Result<bool> {
    let options = Options::parse(std::env::args().skip(1))?;
    let limit = 3 * options.time + Duration::from_secs(900);
    // What is left to find out why is no use inside of a guest that has ended.
    let written = Some(&*Box::leak(options.folder.clone().into_boxed_path()));
    // Ten daemons built for development, three members of etcd.
    lab_kernel::ensure(&options.needs()?, Guest { limit, memory: 3072, written, ..Guest::default() })?;
    println!("kernel: {}", lab_kernel::describe());
    println!("seed: {} (SEED={} runs the same schedule)", options.seed, options.seed);
    println!("backend: {}, Services by: {}", options.backend, options.proxy);
    let shared = Arc::new(Shared::new());
    let probers: Vec<_> = (0..prober::PROBERS)
        .map(|number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || prober::run(&shared, number as u64))
        })
        .collect();
    let passed = Run::start(options, Arc::clone(&shared)).and_then(Run::finish);
    shared.end();
    for prober in probers {
        if prober.join().is_err() {
            anyhow::bail!("a thread that asks panicked");
        }
    }
    passed
}

/// A violation for people.
fn sentence(violation: &Violation) -> String {
    format!("{:.1} s: {}: {}", violation.at.as_secs_f64(), violation.invariant, violation.text)
}
