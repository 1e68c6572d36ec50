//! One HTTP server: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/status`, `/tables`, `/changes`, and what a program has beside ([`own`]).
//!
//! It only reads. Invariants: a listener that cannot be opened is logged and tried again, and hinders nothing else; the
//! number of connections, their length and the size of what they send are bounded, so that nobody can keep the daemon
//! busy from here, and no connection keeps a new one waiting: one that waits for events has as long as its client takes them; what says more than whether the daemon is
//! well is served on its unix socket, which is root's, and on the address for metrics; on a loopback address all but metrics only to
//! whoever names it so, which no foreign page in the operator's browser can.

mod ask;
mod board;
mod body;
mod host;
mod listening;
mod own;
mod pages;
mod query;
mod room;
mod server;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use ask::parse;
pub use ask::{AskError, ask, ask_some};
pub use board::{Board, Question};
pub use host::Reach;
pub use listening::serve_wherever;
pub use own::{Answer, Asked, EventSender, Events, OwnPages};
pub use pages::{Health, Page, Probe, Site, Tables, Unserved, Vitals};
pub use query::encoded;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use room::Room;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use server::talk;
pub use server::{Address, Routes, bind, serve_page};

/// Name of the unix socket in the run-time folder.
pub const SOCKET: &str = "http.sock";
