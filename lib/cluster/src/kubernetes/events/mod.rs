//! Events of Kubernetes: what a daemon reports to whoever runs `kubectl describe`.
//!
//! Invariants: a report waits for nobody and holds nobody up; Events are few however much is wrong ([`Due`]); what is the same on every
//! node is one Event of the cluster, whichever node is first. The right that this needs is `create` for `events` of the core group, and
//! for one about a Service `list` for `services`.

mod due;
mod notice;
mod recorder;

pub use due::Due;
pub use notice::{Grade, Notice, Subject};
pub use recorder::{Recorder, Reporter};
