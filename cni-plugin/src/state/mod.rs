//! State on disk, under locks: the records of attachments, and the reservations of addresses in host-local's layout.

pub mod record;
pub mod reservations;
pub mod safe_file;
