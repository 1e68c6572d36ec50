//! What both daemons share.
//!
//! | module | noun |
//! |---|---|
//! | [`mod@confine`] | what a daemon gives up before its first thread |
//! | [`doctor`] | checks that judge facts, and their findings |
//! | [`flags`] | flags that both command lines have, with their environment |
//! | [`log`] | the subscriber: text or JSON, its detail changeable while running |
//! | [`followed`] | a file, and each change of it |
//! | [`glog`] | what of glog is more than a number: detail of modules, stacks |
//! | [`manual`] | manual pages and completions, made from the flags |
//! | [`json`] | JSON that drives no terminal |
//! | [`lifecycle`] | signals, the service manager, exit codes |
//! | [`liveness`] | heartbeats of every loop: which makes no progress |
//! | [`readiness`] | named gates: what is still awaited before the daemon is ready |
//! | [`slot`] | room for one value between two loops |
//! | [`terminal`] | what verbs print for people: colour, repetition |
//! | [`worker`] | the thread that owns the kernel tables |
//! | [`monitors`] | what the kernel says of itself, on its way to that thread |
//! | [`status`] | tables, rows and the file that `status` reads |
//! | [`metrics`] | numbers for Prometheus |
//! | [`shell`] | the frame that both run in |
//! | [`http`] | health, metrics, status and tables for whoever asks |
//!
//! Invariant: nothing here knows a lease or a Service. The plugin does not link this crate.

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod confine;
pub mod doctor;
pub mod files;
pub mod flags;
pub mod followed;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
pub mod glog;
pub mod http;
pub mod json;
pub mod lifecycle;
pub mod liveness;
pub mod log;
pub mod manual;
pub mod metrics;
pub mod monitors;
pub mod readiness;
pub mod shell;
pub mod slot;
pub mod spent;
pub mod status;
pub mod terminal;
pub mod worker;

pub use cluster::problem;
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS as FUZZ_TARGETS;
