//! `Reader`: the bytes of a snapshot as they come, and whether they are all of it and what etcd sent.
//!
//! Invariant: a snapshot is a database of bbolt, whole sectors, and the SHA-256 of it behind (clientv3/snapshot/v3_snapshot.go).

use std::fmt;

#[cfg(test)]
use ring::digest::digest;
use ring::digest::{Context, SHA256};

/// Bytes of the digest at the end.
const TRAILER: usize = 32;

/// A snapshot's database is a multiple of this.
const SECTOR: u64 = 512;

/// Where bbolt writes its mark and its version, in the order of bytes of the machine that wrote it (bbolt, db.go: page 0).
const MARK_AT: usize = 16;

/// Mark and version, little-endian.
const MARK: [u8; 8] = [0xed, 0xda, 0x0c, 0xed, 2, 0, 0, 0];

/// What is read so far.
pub(crate) struct Reader {
    context: Context,
    /// The first bytes, as far as the mark.
    head: Vec<u8>,
    /// The last bytes, which may be the digest.
    tail: Vec<u8>,
    size: u64,
}

/// A whole snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// The SHA-256 of the database, in hexadecimal.
    pub(crate) digest: String,
}

/// What is wrong with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no sectors, or a part of one.
    Size(u64),
    /// It is no database.
    Mark,
    /// It is not what etcd sent.
    Digest,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(
                f,
                "{size} bytes are no whole snapshot, which has sectors of {SECTOR} bytes and a digest of {TRAILER}: it was cut off, or copied from a \
                 member's folder and not taken by `netdadm backup` or `etcdctl snapshot save`"
            ),
            Self::Mark => f.write_str("it is no database of etcd"),
            Self::Digest => f.write_str("its SHA-256 is not the one at its end: it was changed or damaged after etcd sent it; use another backup"),
        }
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self { context: Context::new(&SHA256), head: Vec::new(), tail: Vec::new(), size: 0 }
    }
}

impl Reader {
    /// The next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let lacking = (MARK_AT + MARK.len()).saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(lacking));
        self.tail.extend_from_slice(bytes);
        let certain = self.tail.len().saturating_sub(TRAILER);
        self.context.update(self.tail.get(..certain).unwrap_or_default());
        self.tail.drain(..certain);
    }

    /// What was read, when nothing more comes.
    ///
    /// # Errors
    /// When it is not a whole snapshot.
    pub(crate) fn finish(self) -> Result<Snapshot, Fault> {
        let sectors = self.size.checked_sub(TRAILER as u64).filter(|size| *size > 0 && size.is_multiple_of(SECTOR));
        if sectors.is_none() {
            return Err(Fault::Size(self.size));
        }
        if self.head.get(MARK_AT..) != Some(&MARK) {
            return Err(Fault::Mark);
        }
        let found = self.context.finish();
        if found.as_ref() != self.tail {
            return Err(Fault::Digest);
        }
        let hexadecimal = found.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Snapshot { size: self.size, digest: hexadecimal })
    }
}

/// A snapshot with this database.
#[cfg(test)]
pub(super) fn of(database: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; MARK_AT];
    bytes.extend(MARK);
    bytes.extend(database);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let trailer = digest(&SHA256, &bytes);
    bytes.extend(trailer.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize) -> Result<Snapshot, Fault> {
        let mut reader = Reader::default();
        bytes.chunks(piece).for_each(|piece| reader.push(piece));
        reader.finish()
    }

    #[test]
    fn a_whole_snapshot_is_read_in_pieces_of_any_size() {
        let bytes = of(b"keys");
        let found = read(&bytes, bytes.len()).unwrap();
        assert_eq!((found.size, found.digest.len()), (544, 64));
        for piece in [1, 7, 31, 32, 33, 100, 543] {
            assert_eq!(read(&bytes, piece).as_ref(), Ok(&found), "{piece}");
        }
    }

    #[test]
    fn what_is_cut_off_changed_or_another_file_is_named_as_that() {
        let bytes = of(b"keys");
        for length in [0, 1, 32, 100, 512, 543] {
            assert_eq!(read(&bytes[..length], 64), Err(Fault::Size(length as u64)));
        }
        for place in [24, 300, 511, 512, 543] {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert_eq!(read(&changed, 64), Err(Fault::Digest), "{place}");
        }
        assert_eq!(read(&[b'x'; 544], 64), Err(Fault::Mark));
    }
}
