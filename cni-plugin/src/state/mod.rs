//! State on disk, under locks: the records of attachments, and the reservations of addresses in host-local's layout.

pub mod places;
pub mod record;
pub mod records;
pub mod reservations;
pub mod safe_file;

use std::time::Duration;

/// How long a call waits for another call on the same attachment.
pub const ATTACHMENT_WAIT: Duration = Duration::from_secs(10);

/// How long a call waits for the network's reservations; each holder needs well under a millisecond.
pub const RESERVATION_WAIT: Duration = Duration::from_secs(5);
