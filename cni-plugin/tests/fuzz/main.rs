//! Whatever stands on standard input, in the environment or in a state file: answered, never panicked at, in bounded memory
//! and time.
//!
//! Each target has a committed corpus beside this file. A run replays it and goes on with a fixed number of inputs that are
//! made from it, the same in every run. With `FUZZ_SECONDS` set it goes on for that long, another way each time. An input that
//! fails is kept, and named with what went wrong; into the corpus it goes with the fix.
//!
//! Inputs are made by the crate `fuzz`. Targets that look at files and at the kernel
//! do it with root's rights in namespaces of their own, where every file system of the host is read-only.

// A failed expectation is how a test fails; clippy knows only the standard harness as test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod memory;
mod targets;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

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
    fuzz::corpus(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name))
}

fn run(name: &'static str, target: Target, in_sandbox: bool) -> Result<(), Failed> {
    let corpus = corpus(name);
    let work = move || {
        if in_sandbox {
            enter_sandbox();
        }
        fuzz::first_failure(&corpus, |input| failure_of(input, target))
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

fn failure_of(input: &[u8], target: Target) -> Option<String> {
    let (failure, peak) = memory::peak_of(|| fuzz::failure_of(input, target));
    failure.or_else(|| {
        (peak > allowance(input.len())).then(|| format!("{peak} bytes held for an input of {}", input.len()))
    })
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
