//! Every test of the workspace, several binaries beside each other.
//!
//! `cargo test` runs one binary after the other, and those of the lab wait most of their time: for a process, a lease, a timer of the
//! kernel. This program asks cargo for the same binaries, runs each as cargo does, in the folder of its package, and prints what it
//! wrote when it ends. The tests in documentation are one more of them. They share nothing: each makes its own machines in namespaces.
//!
//! Invariants: exit status 0 only when every binary passed; a further one is begun only while the processors are idle enough, so that
//! tests of how fast something is do not wait for each other; one that does not end within [`LIMIT`] has failed. Up to three that failed
//! beside others are run once more alone, as `cargo test` would have run them, and named whatever comes of it.

#![allow(clippy::print_stdout, reason = "a report is its purpose")]

mod job;
mod kernels;
mod pace;
mod report;
mod suites;

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use job::{Ended, Job};
use pace::Pace;
use report::Report;

/// Longest time of one binary, nearly three times what the longest one takes; what stands still so long leaves time to run it again.
const LIMIT: Duration = Duration::from_secs(900);

/// So many that failed beside others are run alone: where there are more, it is no accident.
const ALONE: usize = 3;

/// Time between two readings of how idle the processors are.
const PERIOD: Duration = Duration::from_secs(1);

const USAGE: &str = "usage: run-tests [--at-once N] [--kernels 'VERSION...'] [WORD...]
  --kernels     run those of tests/kernel/suites, and the demo, on each of these lab kernels, and print a table
  --at-once N   run at most N binaries beside each other (default: twice as many as there are processors)
  WORD          run only those whose name contains one of the words, such as netd_vxlan";

struct Options {
    at_once: usize,
    kernels: Vec<String>,
    words: Vec<String>,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    // Most of their time the binaries of the lab wait; `Pace` keeps those that work apart.
    let processors = thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let mut options = Options { at_once: 2 * processors, kernels: Vec::new(), words: Vec::new() };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--at-once" => {
                let number = words.next().context(USAGE)?;
                options.at_once = number.parse().ok().filter(|n| *n > 0).context(USAGE)?;
            }
            "--kernels" => {
                options.kernels = words.next().context(USAGE)?.split_whitespace().map(str::to_owned).collect();
                ensure!(!options.kernels.is_empty(), "{USAGE}");
            }
            option if option.starts_with('-') => bail!("{USAGE}"),
            _ => options.words.push(word),
        }
    }
    Ok(options)
}

/// Runs `jobs` and prints the output of each as it ends.
fn run(mut waiting: VecDeque<Job>, at_once: usize) -> Result<Report> {
    let (sender, ended) = channel::<Ended>();
    let (mut running, mut pace, mut report) = (0, Pace::default(), Report::new(Instant::now()));
    while running > 0 || !waiting.is_empty() {
        let may_begin = running == 0 || (running < at_once && pace.has_room());
        if let Some(job) = may_begin.then(|| waiting.pop_front()).flatten() {
            running += 1;
            pace.begin();
            let sender = sender.clone();
            let work = move || drop(sender.send(job.run(LIMIT)));
            thread::Builder::new().spawn(work).context("start a thread")?;
        }
        match ended.recv_timeout(PERIOD) {
            Ok(ended) => {
                running -= 1;
                std::io::stdout().write_all(&report.take(ended)).context("write the report")?;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the threads of the binaries have ended"),
        }
    }
    let failed = report.failed();
    if at_once > 1 && failed.len() <= ALONE {
        for job in failed {
            println!("run-tests: {} is run once more, alone", job.title);
            std::io::stdout().write_all(&report.take_alone(&job.run(LIMIT))).context("write the report")?;
        }
    }
    Ok(report)
}

fn main() -> ExitCode {
    let all = || -> Result<bool> {
        let options = options(std::env::args().skip(1))?;
        if !options.kernels.is_empty() {
            let (jobs, mut table) = kernels::jobs(&options.kernels, &options.words)?;
            println!("{} runs on {} kernels", jobs.len(), options.kernels.len());
            let report = run(jobs.into(), options.at_once)?;
            table.fill(&report);
            print!("{report}{table}");
            return Ok(report.passed());
        }
        let jobs = job::all(&options.words)?;
        ensure!(!jobs.is_empty(), "no binary has a name with {:?}", options.words);
        println!("{} test binaries, up to {} beside each other", jobs.len(), options.at_once);
        let report = run(jobs.into(), options.at_once)?;
        print!("{report}");
        Ok(report.passed())
    };
    match all() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("run-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        options(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_line_is_read_and_what_is_unknown_is_refused_with_the_usage() {
        let all = read("").unwrap();
        assert!(all.at_once > 0 && all.words.is_empty());
        let some = read("netd_ --at-once 5 proxy_").unwrap();
        assert_eq!((some.at_once, some.words), (5, vec!["netd_".to_owned(), "proxy_".to_owned()]));
        assert!(all.kernels.is_empty());
        for line in ["--at-once", "--at-once 0", "--at-once many", "--all", "--kernels"] {
            assert!(read(line).is_err_and(|error| error.to_string().starts_with("usage")), "{line}");
        }
    }

    #[test]
    fn each_is_run_once_and_one_that_fails_fails_the_whole() {
        let jobs = |scripts: &[&str]| scripts.iter().map(|script| Job::of_shell(script)).collect::<VecDeque<_>>();
        assert!(run(jobs(&["true", "true", "true"]), 2).unwrap().passed());
        let report = run(jobs(&["true", "echo went wrong >&2; exit 3", "true"]), 2).unwrap();
        assert!(!report.passed());
        assert!(report.to_string().contains("exit status: 3"), "{report}");
        assert!(run(VecDeque::new(), 2).unwrap().passed());
    }

    #[test]
    fn what_failed_beside_others_is_run_once_more_alone_unless_too_much_did() {
        let folder = tempfile::tempdir().unwrap();
        let fails_once = |n: usize| {
            let mark = folder.path().join(n.to_string());
            Job::of_shell(&format!("test -e {0} || {{ touch {0}; exit 3; }}", mark.display()))
        };
        let report = run(VecDeque::from([fails_once(1)]), 2).unwrap();
        assert!(report.passed() && report.to_string().contains("UNSTEADY"), "{report}");
        assert!(!run(VecDeque::from([fails_once(2)]), 1).unwrap().passed(), "it was alone");
        assert!(!run((3..=ALONE + 3).map(fails_once).collect(), 2).unwrap().passed(), "too many");
    }
}
