//! etcd, version 3 API: client with sticky failover, list and watch, key-value store, leases.
//!
//! Invariants: every operation ends within a known time, whatever the members do; a dead member costs no failed
//! operation while another one lives; a watch misses nothing, because it goes on from the last revision it saw
//! or lists anew; no operation is made per key of a listing.

mod access;
mod administration;
mod audit;
mod client;
mod comparison;
mod config;
mod endpoints;
mod entry;
mod fault;
mod follow;
mod keep_alive;
mod lease;
mod member;
mod members;
mod pages;
mod pause;
mod prefix;
mod store;
mod tls;
mod watch;

pub use administration::{Administration, Download, MemberEntry, MemberStatus};
pub use client::Client;
pub use config::{Config, Limits};
pub use endpoints::Endpoint;
pub use entry::{Creation, Deletion, Entry, Hold, LeaseId, Listing, Replacement, Shown, TimeToLive};
pub use keep_alive::{KeepAlive, LeaseState};
pub use prefix::Prefix;
pub use store::Store;
pub use tls::{TlsFiles, TlsMaterial};
pub use watch::{watch, watch_entries, watch_key};
