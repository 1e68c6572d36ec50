//! Records of the owners of addresses that `host-local` gave to other plugins.
//!
//! ```text
//! <dataDir>/.owners/<network>/<container>@<ifname>   the addresses of an owner and the boot it is of
//! ```
//! Whose link such an address is on is not known here, so nothing tells a living owner from a dead one but the boot.
//! Invariant: what a record of this boot tells of counts as alive until DEL or GC. `.owners` is no network's name: those
//! begin with a letter or digit.

use std::path::{Path, PathBuf};

use crate::protocol::attachment::Attachment;
use crate::protocol::error::CniError;
use crate::state::record::{self, Found};

/// The directory of the records below `data_dir`.
#[must_use]
pub fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join(".owners")
}

/// True when a record tells that `owner` was given addresses of `network`, whose reservations are in `reservations`, for
/// another plugin, and no reboot was since. What cannot be read tells it, too. Takes no lock.
#[must_use]
pub fn has_living(reservations: &Path, network: &str, owner: &Attachment) -> bool {
    let record = beside(reservations).map(|dir| record::peek(&dir, network, owner));
    record.flatten().is_some_and(|record| record.is_none_or(|record| !record.is_of_earlier_boot()))
}

/// Removes the record of `owner`, if there is one that nobody works with.
///
/// # Errors
/// Code 5 when the file system refuses.
pub fn forget(reservations: &Path, network: &str, owner: &Attachment) -> Result<(), CniError> {
    let Some(dir) = beside(reservations) else { return Ok(()) };
    match record::find(&dir, network, owner)? {
        Found::Held(held) => held.remove(),
        Found::None | Found::Busy => Ok(()),
    }
}

/// The directory of the records beside that of one network's reservations.
fn beside(reservations: &Path) -> Option<PathBuf> {
    reservations.parent().map(dir)
}
