//! What a daemon says of itself: tables and rows, as text and JSON, and the file that `status` reads.
//!
//! Invariants: text that came from outside (a key, a name, a reason) stays on its line, whatever characters it has;
//! lists are bounded, beyond that only their number is said.

mod file;
mod line;
mod table;

pub use file::{FILE, File, HEARTBEAT, Process, STALE, State, Stored};
pub use line::{Lines, escape};
pub use table::{LISTED, Row, RowText, Table, TableRows, bounded, is_tried};
