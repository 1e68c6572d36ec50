//! Sources of desired state: what the cluster should be, as streams of events.
//!
//! Every source lists ([`Event::Reset`], [`Event::Put`], [`Event::Complete`]) and then reports changes, each of which ends
//! with [`Event::Commit`]; beside them it reports when it is out of reach or holds an item that cannot be read. A consumer
//! folds them into one [`Snapshot`] per kind of object, which keeps the one rule that matters: *nothing is removed before
//! the listing is whole*.
//!
//! Keys and values are text and bytes here. What a lease or a Service means is the program's business; this
//! crate depends on none of the others.
//!
//! | module | noun |
//! |---|---|
//! | [`event`] | what a source reports |
//! | [`snapshot`] | what a consumer knows of one kind of object |
//! | [`heartbeat`] | until when a loop has said that it will be back |
//! | [`source`] | a running source: a queue of events and the task that fills it |
//! | [`etcd`] | client with sticky failover, list and watch, key-value store, leases |
//! | [`kubernetes`] | the Kubernetes API: lists and watches folded into small values, single requests |
//! | [`directory`] | a watched directory of Kubernetes manifests |
//! | [`manifest`] | Kubernetes objects read from YAML or JSON text |
//! | [`certificates`] | until when the certificates are valid that clients use |
//! | [`text`] | text of others, on one line and without letters that hide |
//! | [`time`] | times as the Kubernetes API has them |
//! | [`bounded`] | files that somebody else writes, read up to a limit |
//! | [`backoff`] | jittered waiting times |
//! | [`problem`] | what is wrong with an input, in which field, and the accepted form |
//! | [`error`] | what failed, on which object, where, and whether to try again |

pub mod backoff;
pub mod certificates;
mod credentials;
pub mod directory;
pub mod error;
pub mod etcd;
pub mod event;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
pub mod heartbeat;
pub mod kubernetes;
pub mod manifest;
pub mod problem;
mod provider;
mod registry;
pub mod snapshot;
pub mod source;
pub mod text;
pub mod time;
pub mod words;

pub use backoff::Backoff;
pub use error::{Class, ClusterError};
pub use event::{Break, Event, Origin};
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS as FUZZ_TARGETS;
pub use problem::{Problem, Problems};
pub use snapshot::Snapshot;
pub use source::Source;
pub use words::Words;
