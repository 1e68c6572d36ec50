//! Runs each test in a network namespace of its own, on a thread of its own.

#![allow(dead_code, unused_imports, unused_macros, reason = "each test binary uses its part")]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use reconcile::{Pass, Reconciler, Stage as _, Target};

/// One test: its name and what it does inside its namespace.
pub(crate) type Case = (&'static str, fn());

/// These functions as cases, each under its own name.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), $case as fn())),*] };
}
pub(crate) use cases;

/// The main function of a test binary: without the right to make namespaces every case counts as ignored, loudly.
pub(crate) fn main(cases: &[Case]) -> ExitCode {
    main_with(cases, "", true, &[])
}

/// The same with `more` cases that need `what` of the kernel: where it `has` not, these count as ignored, loudly.
pub(crate) fn main_with(cases: &[Case], what: &str, has: bool, more: &[Case]) -> ExitCode {
    let able = std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap_or(false);
    if !able {
        eprintln!("SKIPPED: these tests make network namespaces; run them as root (or under `unshare -Ur`)");
    }
    if !has {
        let names: Vec<&str> = more.iter().map(|(name, _)| *name).collect();
        eprintln!("SKIPPED: this kernel has no {what}: {}", names.join(", "));
    }
    let trial = |(name, test): &Case, able: bool| {
        let test = *test;
        Trial::test(*name, move || in_a_namespace(test)).with_ignored_flag(!able)
    };
    let trials = cases.iter().map(|case| trial(case, able));
    let trials = trials.chain(more.iter().map(|case| trial(case, able && has))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The same on a kernel that has `what`: this one, or the lab kernel. Where there is neither, cases count as ignored.
pub(crate) fn main_in_lab(what: &str, has: impl Fn() -> bool, cases: &[Case]) -> ExitCode {
    if has() || enter_lab() {
        return main(cases);
    }
    eprintln!("SKIPPED: this kernel has no {what} and the lab kernel is not built; run tests/kernel/build");
    let ignored = cases.iter().map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(true));
    libtest_mimic::run(&Arguments::from_args(), ignored.collect()).exit_code()
}

/// Goes on as the same program inside the lab kernel; returns false when that cannot be.
fn enter_lab() -> bool {
    if std::env::var_os("NETD_LAB_GUEST").is_some() {
        return false;
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/kernel");
    let built = Command::new(scripts.join("build")).arg("--path").output();
    if !built.is_ok_and(|output| output.status.success()) {
        return false;
    }
    let Ok(program) = std::env::current_exe() else { return false };
    let error = Command::new(scripts.join("run")).arg("--").arg(program).args(std::env::args_os().skip(1)).exec();
    eprintln!("the lab kernel cannot be started: {error}");
    false
}

fn in_a_namespace(test: fn()) -> Result<(), Failed> {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link set lo up");
        test();
    };
    let thread = std::thread::Builder::new().spawn(inside).map_err(|error| Failed::from(error.to_string()))?;
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Failed::from(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    })
}

/// Runs a command in the calling thread's namespace; answers its output.
pub(crate) fn sh(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs a command in the calling thread's namespace with `input`.
pub(crate) fn feed(program: &str, args: &[&str], input: &str) {
    use std::io::Write;
    let mut child = Command::new(program).args(args).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {args:?}");
}

/// `ip` with words separated by spaces.
pub(crate) fn ip(args: &str) -> String {
    sh("ip", &args.split_whitespace().collect::<Vec<_>>())
}

/// One pass at the beginning of the table's clock.
pub(crate) fn run<T: Target>(table: &mut Reconciler<T>) -> Pass {
    table.pass(true, Duration::ZERO)
}

/// One pass that changes something, one that finds nothing to do even after listing again.
#[track_caller]
pub(crate) fn converge<T: Target>(table: &mut Reconciler<T>) -> Pass {
    converge_at(table, Duration::ZERO)
}

/// The same at a time of the table's clock: a row that is undone again and again within seconds is put back more slowly.
#[track_caller]
pub(crate) fn converge_at<T: Target>(table: &mut Reconciler<T>, now: Duration) -> Pass {
    let first = table.pass(true, now);
    assert_eq!(first.errors, vec![]);
    table.invalidate();
    let second = table.pass(true, now);
    assert!(second.is_idle(), "second pass: {second:?}");
    first
}
