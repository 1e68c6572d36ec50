//! Faults for built programs: the N-th write of state or step in the kernel fails with an errno, or the program is killed at it.
//!
//! A program runs under ptrace(2), every thread and child of it. [`operation`] says which system calls are operations; nobody lists the places
//! in the program, so a walk from the first operation to the last reaches each of them. One that is to fail never reaches the kernel, but for
//! requests of netlink: these are spoiled on their way, so that the kernel itself refuses this one message of a batch (and with it a whole
//! transaction of nftables), and the errno in its answer is put in place of the kernel's.
//!
//! Invariant: the faults of a run are those of its [`Plan`], and a run whose plan is empty is an undisturbed one.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "this crate is for tests, which may fail by panic"
)]

mod memory;
mod netlink;
mod operation;
mod report;
mod supervisor;

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::errno::Errno;

pub use operation::{Kind, Operation};
pub use report::{Followed, Report};

use supervisor::Supervisor;

/// What happens to which operations of a run: their numbers, from 0.
pub type Plan = BTreeMap<usize, Effect>;

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails with that errno of its kind; numbers beyond the last begin again.
    Fails(usize),
    /// The program is killed before it.
    Killed,
}

/// What became of a fault.
#[derive(Debug, Clone)]
pub struct Injected {
    /// The operation.
    pub operation: Operation,
    /// The errno, or none for a death.
    pub errno: Option<Errno>,
}

impl std::fmt::Display for Injected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.errno {
            Some(errno) => write!(f, "{} fails with {errno:?}", self.operation),
            None => write!(f, "killed at {}", self.operation),
        }
    }
}

/// The end of a program that ran once.
#[derive(Debug)]
pub struct Run {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The first fault that the run reached.
    pub injected: Option<Injected>,
}

/// Whether every errno is to be tried: `FAULTS=all` in the environment.
#[must_use]
pub fn all() -> bool {
    env::var_os("FAULTS").is_some_and(|value| value == "all")
}

/// What to try at an operation: with [`all`] every errno of its kind and death, otherwise one errno, another one at the next operation.
#[must_use]
pub fn effects(at: usize) -> Vec<Effect> {
    if all() { (0..Kind::MOST).map(Effect::Fails).chain([Effect::Killed]).collect() } else { vec![Effect::Fails(at)] }
}

/// The command that a supervisor waits for: it stops itself, and goes on as `program` once it is let go.
#[must_use]
pub const fn launcher() -> [&'static str; 3] {
    ["/bin/sh", "-c", "kill -STOP $$; exec \"$0\" \"$@\""]
}

/// Runs `command` to its end, in the namespaces of the calling thread, with `input` on standard input.
#[must_use]
pub fn run(command: &Command, input: &str, plan: Plan) -> Run {
    thread::scope(|scope| scope.spawn(|| run_here(command, input, plan)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[allow(clippy::zombie_processes, reason = "waitpid(2) of the supervisor collects it")]
fn run_here(command: &Command, input: &str, plan: Plan) -> Run {
    let [shell, flag, script] = launcher();
    let (mut stdin, mut stdout, mut stderr) = (file(), file(), file());
    stdin.write_all(input.as_bytes()).unwrap();
    stdin.rewind().unwrap();
    let child = Command::new(shell)
        .args([flag, script])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(stdin)
        .stdout(Stdio::from(stdout.try_clone().unwrap()))
        .stderr(Stdio::from(stderr.try_clone().unwrap()))
        .spawn()
        .unwrap();
    let seen = Supervisor::attach(i32::try_from(child.id()).unwrap(), plan).follow();
    let status = seen.ended.unwrap();
    Run { status, stdout: text(&mut stdout), stderr: text(&mut stderr), injected: seen.injected.into_iter().next() }
}

/// Follows a process that is not a child of this one, to its end.
#[must_use]
pub fn follow(process: i32, plan: Plan) -> Report {
    let seen = Supervisor::attach(process, plan).follow();
    let faults = seen.injected.iter().map(|injected| (format!("{:?}", injected.operation.kind), injected.to_string()));
    Report { operations: seen.operations, faults: faults.collect() }
}

/// What is to happen at an operation, as one word: `NUMBER=ERRNO` or `NUMBER=kill`.
#[must_use]
pub fn planned(word: &str) -> Option<(usize, Effect)> {
    let (number, effect) = word.split_once('=')?;
    let effect = if effect == "kill" { Effect::Killed } else { Effect::Fails(effect.parse().ok()?) };
    Some((number.parse().ok()?, effect))
}

fn file() -> File {
    tempfile::tempfile_in("/dev/shm").unwrap()
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
