//! Memory of a stopped thread, and what its descriptors are.
//!
//! Invariant: only what the thread's own call names is read or written, while it is stopped at that call.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// A stopped thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread(pub(crate) i32);

impl Thread {
    pub(crate) fn read(self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let read = File::open(format!("/proc/{}/mem", self.0)).and_then(|file| file.read_at(&mut bytes, address));
        bytes.truncate(read.unwrap_or_default());
        bytes
    }

    /// Fails when the thread has been killed meanwhile.
    pub(crate) fn write(self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let file = File::options().write(true).open(format!("/proc/{}/mem", self.0));
        file.and_then(|file| file.write_all_at(bytes, address))
    }

    pub(crate) fn word(self, address: u64) -> u64 {
        self.read(address, 8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// The text at `address`, up to its end.
    pub(crate) fn text(self, address: u64) -> String {
        // A page at a time: the next one need not be there.
        let mut bytes = Vec::new();
        while bytes.len() < 4096 {
            let at = address + u64::try_from(bytes.len()).unwrap_or_default();
            let part = self.read(at, usize::try_from(256 - at % 256).unwrap_or(1));
            let end = part.iter().position(|byte| *byte == 0);
            bytes.extend_from_slice(&part[..end.unwrap_or(part.len())]);
            if end.is_some() || part.is_empty() {
                break;
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the descriptor is: a path, or `socket:[…]`, `pipe:[…]`, `anon_inode:…`.
    pub(crate) fn descriptor(self, fd: u64) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.0));
        link.map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The buffers of a `msghdr`, each with address and length.
    pub(crate) fn buffers(self, header: u64) -> Vec<(u64, usize)> {
        let (first, count) = (self.word(header + 16), self.word(header + 24).min(64));
        let vector = (0..count).map(|number| first + 16 * number);
        vector.map(|at| (self.word(at), usize::try_from(self.word(at + 8)).unwrap_or_default())).collect()
    }
}
