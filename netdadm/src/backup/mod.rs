//! Snapshots of etcd: taken from a member into a file, and how a cluster is made of one again.
//!
//! Invariants: a file that has a name is whole, and its digest is the one that etcd sent with it; it is for its owner alone, because it
//! holds every Secret of the cluster.

mod restore;
mod snapshot;
mod unfinished;

use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::Path;

pub(crate) use restore::instructions;
pub(crate) use snapshot::{Reader, Snapshot};
use unfinished::Unfinished;

use crate::members::{Member, Session};

/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// Takes the snapshot of a member into the file at `path`, which is not there yet.
///
/// # Errors
/// When the member does not answer or breaks off, what came is not what it sent, or the file cannot be written; then there is none.
pub(crate) fn take(session: &Session, member: &Member, path: &Path) -> Result<Snapshot, String> {
    let client = session.client(member).ok_or_else(|| format!("{} has no URL for clients", member.name()))?;
    let administration = session.administration(&client)?;
    let shown = path.display();
    let mut file = Unfinished::create(path).map_err(|cause| format!("write {shown}: {cause}"))?;
    let mut download = session.wait(administration.snapshot()).map_err(|error| error.to_string())?;
    let mut reader = Reader::default();
    while let Some(piece) = session.wait(download.next()).map_err(|error| error.to_string())? {
        reader.push(&piece);
        file.write_all(&piece).map_err(|cause| format!("write {shown}: {cause}"))?;
    }
    let snapshot = reader.finish().map_err(|fault| format!("the snapshot of {}: {fault}", member.name()))?;
    file.finish().map_err(|cause| format!("write {shown}: {cause}"))?;
    Ok(snapshot)
}

/// Reads a snapshot from its file.
///
/// # Errors
/// When it cannot be read, or is no whole snapshot.
pub(crate) fn verify(path: &Path) -> Result<Snapshot, String> {
    let shown = path.display();
    let failed = |cause| format!("read {shown}: {cause}");
    // A pipe has its writer waited for, and a device has no end.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let file = File::open(path).map_err(failed)?;
    let (mut file, mut reader, mut piece) = (BufReader::new(file), Reader::default(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => break,
            length => reader.push(piece.get(..length).unwrap_or_default()),
        }
    }
    reader.finish().map_err(|fault| format!("{shown}: {fault}"))
}
