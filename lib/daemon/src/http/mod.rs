//! One HTTP server: `/healthz`, `/livez`, `/readyz`, `/metrics`, `/status`, `/tables`.
//!
//! It only reads. Invariants: a listener that cannot be opened is logged and tried again, and hinders nothing else; the
//! number of connections, their length and the size of what they send are bounded, so that nobody can keep the daemon
//! busy from here; what says more than whether the daemon is well is served on its unix socket, which is root's, and on
//! the address for metrics.

mod ask;
mod board;
mod listening;
mod pages;
mod server;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use ask::parse;
pub use ask::{AskError, ask};
pub use board::{Board, Question};
pub use listening::serve_wherever;
pub use pages::{Health, Page, Probe, Site, Tables, Unserved, Vitals};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use server::talk;
pub use server::{Address, Routes, bind, serve_page};

/// Name of the unix socket in the run-time folder.
pub const SOCKET: &str = "http.sock";
