//! The `main` of a test binary: finds a kernel that has what the tests need, runs each on a thread of its own, reports.
//!
//! Invariant: a test that cannot run here is never counted as passed. It is counted as ignored with the reason and a loud
//! line that names the command to run; with `NETD_LAB=require` in the environment (`make test` sets it) it fails, but for what nobody
//! can get on this machine ([`Absent::CannotBeHad`]).

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::absent::Absent;
use crate::evidence;
use crate::kubernetes::{Release, tools};
use crate::lab_kernel::{self, Guest};
use crate::need::Need;

/// `require`: a test that cannot run is a failure.
const MODE_VARIABLE: &str = "NETD_LAB";

/// One test: its name and its body.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    name: &'static str,
    body: fn() -> Result<()>,
}

impl Test {
    /// A test of this name; [`tests!`](crate::tests) names tests after their functions.
    #[must_use]
    pub const fn new(name: &'static str, body: fn() -> Result<()>) -> Self {
        Self { name, body }
    }
}

/// Lists functions `fn() -> anyhow::Result<()>` as tests of the same names.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => { ::std::vec![$($crate::harness::Test::new(::std::stringify!($name), $name)),*] };
}

/// The tests of one binary and what they need.
#[derive(Debug)]
pub struct Suite {
    needs: Vec<Need>,
    guest: Guest,
    obstacle: Option<Absent>,
    threads: Option<usize>,
}

/// Runs `tests` on a kernel that has all of `needs`; the whole `main` of most test binaries.
#[must_use]
pub fn main(needs: &[Need], tests: Vec<Test>) -> ExitCode {
    Suite::new(needs).run(tests)
}

impl Suite {
    /// A suite on a kernel that has all of `needs`.
    #[must_use]
    pub fn new(needs: &[Need]) -> Self {
        Self { needs: needs.to_vec(), guest: Guest::default(), obstacle: None, threads: None }
    }

    /// Why the tests cannot run on this machine, whatever its kernel has; `None` when they can. Of several reasons the first is said.
    #[must_use]
    pub fn unless(mut self, obstacle: Option<impl Into<Absent>>) -> Self {
        self.obstacle = self.obstacle.or_else(|| obstacle.map(Into::into));
        self
    }

    /// The tests need real Kubernetes of this release.
    #[must_use]
    pub fn with_kubernetes(mut self, release: Release) -> Self {
        self.obstacle = self.obstacle.or_else(|| release.programs().err());
        self
    }

    /// The tests need kubectl and helm, beside what they need already.
    #[must_use]
    pub fn with_kubernetes_tools(mut self) -> Self {
        self.obstacle = self.obstacle.or_else(|| tools().err());
        self
    }

    /// Time limit of the whole binary when it runs in the lab kernel; ten minutes without this call.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.guest.limit = limit;
        self
    }

    /// Memory of the lab kernel in MiB; 1024 without this call.
    #[must_use]
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.guest.memory = mebibytes;
        self
    }

    /// Tests that run side by side where the command line does not say; without this call as many as there are processors. For tests that
    /// wait more than they work.
    #[must_use]
    pub fn side_by_side(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Parses the command line as the standard harness does and runs the tests it selects.
    #[must_use]
    pub fn run(self, tests: Vec<Test>) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = arguments.test_threads.or(self.threads);
        let obstacle = match (arguments.list, self.obstacle) {
            (true, _) => None,
            (false, Some(obstacle)) => Some(obstacle),
            (false, None) => {
                lab_kernel::ensure(&self.needs, self.guest).err().map(|error| Absent::Missing(format!("{error:#}")))
            }
        };
        let announcement = match &obstacle {
            Some(Absent::Missing(reason) | Absent::CannotBeHad(reason)) => {
                format!("lab: SKIPPED, not passed: {reason}\n")
            }
            None => format!("lab: running on {}\n", lab_kernel::describe()),
        };
        if !arguments.list {
            // In one piece: the lab kernel passes on what it is given, and standard output is written to as well.
            eprint!("{announcement}");
        }
        let trials = tests.into_iter().map(|test| trial(test, obstacle.clone())).collect();
        libtest_mimic::run(&arguments, trials).exit_code()
    }
}

fn trial(test: Test, obstacle: Option<Absent>) -> Trial {
    Trial::ignorable_test(test.name, move || match obstacle {
        None => judge(test),
        Some(Absent::Missing(reason)) if is_required() => {
            Err(format!("cannot run here, and {MODE_VARIABLE}=require: {reason}").into())
        }
        Some(Absent::Missing(reason) | Absent::CannotBeHad(reason)) => Ok(Completion::ignored_with(reason)),
    })
}

/// Runs a test body; a failure carries the error chain and the end of every log of the processes the test started.
fn judge(test: Test) -> Result<Completion, Failed> {
    evidence::clear();
    let verdict = catch_unwind(AssertUnwindSafe(test.body));
    let complaint = match verdict {
        Ok(Ok(())) => return Ok(Completion::Completed),
        Ok(Err(error)) => {
            if let Some(reason) = error.downcast_ref().and_then(excuse) {
                eprintln!("lab: SKIPPED, not passed: {}: {reason}", test.name);
                return Ok(Completion::ignored_with(reason));
            }
            chain(&error)
        }
        Err(panic) => {
            let text =
                panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panicked: {}", text.unwrap_or("with a value that is no text"))
        }
    };
    Err(format!("{complaint}{}", evidence::report()).into())
}

/// Why a test that met this absence counts as skipped; it has failed where nothing excuses it.
fn excuse(absent: &Absent) -> Option<String> {
    match absent {
        Absent::Missing(_) if is_required() => None,
        Absent::Missing(reason) | Absent::CannotBeHad(reason) => Some(reason.clone()),
    }
}

fn is_required() -> bool {
    env::var(MODE_VARIABLE).is_ok_and(|mode| mode == "require")
}

/// The chain of causes and, where RUST_BACKTRACE asks for it, the lines of the test that led there.
fn chain(error: &anyhow::Error) -> String {
    let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
    let backtrace = error.backtrace().to_string();
    let places =
        backtrace.lines().map(str::trim).filter(|line| line.starts_with("at ") && line.contains("/tests/tests/"));
    chain.join("\n  because: ") + &places.map(|place| format!("\n  {place}")).collect::<String>()
}
