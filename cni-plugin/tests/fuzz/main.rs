//! Whatever stands on standard input, in the environment or in a state file: answered, never panicked at, in bounded memory
//! and time.
//!
//! Each target has a committed corpus beside this file. A run replays it and goes on with a fixed number of inputs that are
//! made from it, the same in every run. With `FUZZ_SECONDS` set it goes on for that long, another way each time. An input that
//! fails is kept, and named with what went wrong; into the corpus it goes with the fix.
//!
//! Inputs are mutated here and not by a fuzzing engine: all of them are small JSON objects or lines, whose structure random
//! bytes never have, and the parsers are one crate's with few branches of their own. Targets that look at files and at the kernel
//! do it with root's rights in namespaces of their own, where every file system of the host is read-only.

// A failed expectation is how a test fails; clippy knows only the standard harness as test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod memory;
mod mutate;
mod targets;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::test_runner::{RngAlgorithm, TestRng};

use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Made inputs per run.
const CASES: usize = 1500;

/// How long one input may take. Parsing one takes microseconds; a machine under load must not fail the test.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes that one input may make the plugin hold: a multiple of its length, and what a buffer or a table needs.
const fn allowance(length: usize) -> usize {
    400 * length + (2 << 20)
}

fn main() {
    let args = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!(
            "SKIPPED: fuzz targets that look at files need root for namespaces of their own; they count as ignored"
        );
    }
    let trial = |(name, target, in_sandbox): (&'static str, Target, bool)| {
        Trial::test(format!("fuzz_{name}"), move || run(name, target, in_sandbox))
            .with_ignored_flag(in_sandbox && !root)
    };
    libtest_mimic::run(&args, TARGETS.into_iter().map(trial).collect()).exit();
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn run(name: &'static str, target: Target, in_sandbox: bool) -> Result<(), Failed> {
    let corpus = corpus(name);
    let work = move || {
        if in_sandbox {
            enter_sandbox();
        }
        fuzz(&corpus, target)
    };
    let failure = thread::Builder::new().name(name.to_owned()).spawn(work).unwrap().join().unwrap();
    failure.map_or(Ok(()), |(input, why)| {
        let mut hash = DefaultHasher::new();
        input.hash(&mut hash);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{:016x}", hash.finish()));
        fs::write(&path, &input).unwrap();
        let shown = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
        Err(Failed::from(format!("{why}\ninput, kept as {}:\n{shown:?}", path.display())))
    })
}

/// The first input that fails, and why.
fn fuzz(corpus: &[Vec<u8>], target: Target) -> Option<(Vec<u8>, String)> {
    let limit: Option<u64> = std::env::var("FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let mut rng = match limit {
        None => TestRng::deterministic_rng(RngAlgorithm::ChaCha),
        Some(_) => TestRng::from_seed(RngAlgorithm::ChaCha, &seed()),
    };
    if let Some(failure) = corpus.iter().find_map(|input| failure_of(input, target)) {
        return Some(failure);
    }
    let start = Instant::now();
    let goes_on = |case: usize| match limit {
        None => case < CASES,
        Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
    };
    (0..).take_while(|case| goes_on(*case)).find_map(|_| failure_of(&mutate::mutated(&mut rng, corpus), target))
}

fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut seed).unwrap();
    seed
}

fn failure_of(input: &[u8], target: Target) -> Option<(Vec<u8>, String)> {
    let start = Instant::now();
    let (outcome, peak) = memory::peak_of(|| catch_unwind(AssertUnwindSafe(|| target(input))));
    let why = match outcome {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        }
        Ok(()) if peak > allowance(input.len()) => format!("{peak} bytes held for an input of {}", input.len()),
        Ok(()) if start.elapsed() > PATIENCE => format!("took {:?}", start.elapsed()),
        Ok(()) => return None,
    };
    Some((input.to_vec(), why))
}

/// Leaves the host's network and mounts: what is written goes to memory, or is refused.
fn enter_sandbox() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for point in table.lines().filter_map(|line| line.split(' ').nth(4)) {
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        // One that lies below another mount cannot be reached, nor written to.
        let _ = mount(None::<&str>, point, None::<&str>, read_only, None::<&str>);
    }
    assert!(fs::write("/written", "").is_err(), "the host's files can be written");
    for dir in ["/run", "/var/lib"] {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    fs::create_dir_all("/run/flannel").unwrap();
    let whole = |text: &Vec<u8>| text.starts_with(b"FLANNEL_NETWORK=172.7.0.0/16\n");
    let dual = corpus("subnet_env").into_iter().find(whole).unwrap();
    fs::write("/run/flannel/subnet.env", dual).unwrap();
    fs::write("/run/resolv.conf", "nameserver 192.168.0.2\n").unwrap();
}
