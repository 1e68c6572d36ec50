//! What a source says, with the barrier of a listing in the type.
//!
//! # Contract
//!
//! * A source starts with [`Event::Reset`], lists what exists as [`Event::Put`], then says
//!   [`Event::Complete`].
//! * On `Reset` **nothing is removed yet**: what the consumer knows stays valid while the listing runs.
//! * On `Complete` whatever was not `Put` since the `Reset` is gone. This is where a deletion that happened
//!   during a disconnect is found.
//! * After `Complete`, `Put` and `Delete` are changes, in the order the source saw them.
//! * A listing can break off: the source then says `Reset` again and starts anew. A `Complete` always belongs
//!   to the last `Reset`.
//! * A listing that finds nothing is passed on truthfully (`Reset`, `Complete`). Whether an empty answer is
//!   believed is decided by the consumer, which can ask [`crate::Snapshot::pending_removals`] before it
//!   applies `Complete`.
//! * [`Event::Lost`], [`Event::Resumed`], [`Event::Invalid`] and [`Event::Valid`] change no data. They feed the
//!   status: how old what we know may be, and what could not be read.

use crate::ClusterError;

/// One message of a source. `T` is the value's form: bytes for etcd and directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T = Vec<u8>> {
    /// A listing begins. Nothing is removed yet.
    Reset,
    /// The key has this value now.
    Put {
        /// Below the watched prefix (etcd) or `<kind>/<namespace>/<name>` (directory).
        key: String,
        /// The whole value; never a difference.
        value: T,
        /// Grows with every change of this source; etcd's `mod_revision`, a counter elsewhere.
        revision: i64,
    },
    /// The key is gone.
    Delete {
        /// As in `Put`.
        key: String,
        /// Revision of the deletion.
        revision: i64,
    },
    /// The listing is whole: what was not `Put` since `Reset` does not exist.
    Complete,
    /// The source cannot be heard: what is known may be old. It goes on trying by itself. Said again only when
    /// the reason changes.
    Lost(ClusterError),
    /// Heard again without a new listing: nothing was missed.
    Resumed,
    /// One item (a file, a key) cannot be read. What it said before stays; everything else goes on.
    Invalid {
        /// File name or key.
        source: String,
        /// What is wrong with it, with the accepted form.
        reason: String,
    },
    /// An item reported as [`Event::Invalid`] can be read again, or is gone.
    Valid {
        /// File name or key.
        source: String,
    },
}

impl<T> Event<T> {
    /// The key a `Put` or `Delete` is about.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => Some(key),
            _ => None,
        }
    }
}
