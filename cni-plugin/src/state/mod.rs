//! State on disk, under locks: the records of attachments, the reservations of addresses in host-local's layout, and
//! how often the plugin was called.

pub(crate) mod calls;
pub(crate) mod places;
pub(crate) mod record;
pub(crate) mod records;
pub(crate) mod reservations;
pub(crate) mod safe_file;

use std::time::Duration;

/// How long a call waits for another call on the same attachment.
pub(crate) const ATTACHMENT_WAIT: Duration = Duration::from_secs(10);

/// How long a call waits for the network's reservations; each holder needs well under a millisecond.
pub(crate) const RESERVATION_WAIT: Duration = Duration::from_secs(5);
