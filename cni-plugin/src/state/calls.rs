//! The file in which netd wants the plugin's calls counted.
//!
//! Invariants: without the file nothing is counted, and no file is made; what is none of ours stays as it is; a call that cannot be
//! counted within [`LIMIT`] is not, and is served all the same.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use netstate::calls::{Calls, LENGTH, Verb};
use nix::libc;

/// How long the file's lock is asked for. Each holder needs microseconds, but for one that has to wait for a processor: when many Pods start at once.
const LIMIT: Duration = Duration::from_millis(200);

/// Time between the first two tries; then twice as long each time.
const PAUSE: Duration = Duration::from_micros(200);

/// Longest time between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// A call that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What was asked for.
    pub verb: Verb,
    /// The code of its error, if it failed.
    pub error: Option<u32>,
}

impl Counted {
    /// Counts it in the file at `path`.
    ///
    /// # Errors
    /// Why it could not be counted: mostly because nobody wants it.
    pub fn count(self, path: &Path, took: Duration) -> io::Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        lock(&file)?;
        // One byte more than it may have.
        let mut bytes = [0; LENGTH + 1];
        let length = file.read_at(&mut bytes, 0)?;
        let mut calls = Calls::decode(bytes.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
        calls.count(self.verb, u64::try_from(took.as_micros()).unwrap_or(u64::MAX), self.error);
        // In one piece: a process that is killed has written all of it or nothing.
        file.write_all_at(&calls.encode(), 0)
    }
}

fn lock(file: &File) -> io::Result<()> {
    let begun = Instant::now();
    let mut pause = PAUSE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < LIMIT => thread::sleep(pause),
            answer => return answer.map_err(io::Error::from),
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: Counted = Counted { verb: Verb::Add, error: None };

    #[test]
    fn calls_that_end_at_one_time_are_all_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calls");
        std::fs::write(&path, Calls::default().encode()).unwrap();
        let count = || (0..50).filter(|_| ADD.count(&path, Duration::from_millis(3)).is_ok()).count();
        let counted: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let calls = Calls::decode(&std::fs::read(&path).unwrap()).unwrap();
        let (_, add) = calls.verbs().next().unwrap();
        assert!(counted > 0, "none came through");
        assert_eq!((add.count(), add.microseconds), (counted as u64, 3000 * counted as u64));
    }

    #[test]
    fn a_call_is_counted_behind_one_that_had_to_wait_for_a_processor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calls");
        std::fs::write(&path, Calls::default().encode()).unwrap();
        let held = File::open(&path).unwrap();
        let is_counted = |_| {
            held.lock().unwrap();
            thread::scope(|scope| {
                let call = scope.spawn(|| ADD.count(&path, Duration::ZERO));
                thread::sleep(LIMIT / 8);
                held.unlock().unwrap();
                call.join().unwrap().is_ok()
            })
        };
        // This thread may have to wait for a processor itself.
        assert!((0..10).any(is_counted));
    }

    #[test]
    fn a_file_that_is_missing_foreign_torn_or_held_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calls");
        assert!(ADD.count(&path, Duration::ZERO).is_err() && !path.exists(), "none is made");
        let whole = Calls::default().encode();
        let torn = whole[..LENGTH - 1].to_vec();
        for content in [Vec::new(), b"somebody else's".to_vec(), torn, vec![0; 100_000]] {
            std::fs::write(&path, &content).unwrap();
            assert!(ADD.count(&path, Duration::ZERO).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        std::fs::write(&path, &whole).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        assert!(ADD.count(&path, Duration::ZERO).is_err(), "somebody holds it");
        drop(held);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(ADD.count(&link, Duration::ZERO).is_err(), "a link is planted");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        ADD.count(&path, Duration::ZERO).unwrap();
    }
}
