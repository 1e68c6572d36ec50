//! The lab: machines as sets of namespaces, clusters from a drawing, a real etcd, and a kernel with IPVS. Nothing depends on it.
//!
//! # For authors of tests
//!
//! A test binary is a file of `tests/tests/` with `harness = false` in `tests/Cargo.toml`:
//!
//! ```toml
//! [[test]]
//! name = "netd_vxlan"
//! harness = false
//! ```
//!
//! ```no_run
//! #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]
//! //! What this file is about.
//! use std::process::ExitCode;
//! use std::time::Duration;
//!
//! use anyhow::{Result, ensure};
//! use lab::{Cluster, Need, eventually};
//!
//! fn node_reaches_its_neighbour() -> Result<()> {
//!     let cluster = Cluster::reference()?; // five machines, gone at the end of the function
//!     let node = cluster.host("hdss7-21")?;
//!     node.run(&["ping", "-c1", "-W5", "10.4.7.22"])?; // exit status 0 or an error with both streams
//!     let daemon = node.command(lab::bin("netd")?).arg("--backend=vxlan").start("netd")?; // killed at the end
//!     daemon.wait_for_line("lease acquired", Duration::from_secs(10))?;
//!     eventually(Duration::from_secs(5), || {
//!         let routes = node.run(&["ip", "route"])?.stdout;
//!         ensure!(routes.contains("172.7.22.0/24"), "{routes}");
//!         Ok(())
//!     })?;
//!     ensure!(daemon.terminate(Duration::from_secs(5))?.success());
//!     Ok(())
//! }
//!
//! fn main() -> ExitCode {
//!     lab::harness::main(&[Need::Vxlan, Need::Nftables], lab::tests![node_reaches_its_neighbour])
//! }
//! ```
//!
//! * Tests of a binary run side by side in one process; each makes its own [`Host`]s or [`Cluster`], so names and addresses
//!   never clash. Files go into the machine ([`Host::write`], [`Host::read`]): `/etc`, `/opt`, `/var`, `/run` are its own, `/tmp` is not.
//! * When the running kernel lacks a [`Need`], the whole binary runs inside the lab kernel (`tests/kernel/`, a user-mode Linux), with
//!   the same arguments. It boots in a second; a system call costs ten times more there, so prefer one `ip -batch` to many `ip`.
//! * When it cannot run at all, tests count as ignored, with the reason; with `NETD_LAB=require` they fail.
//! * [`ApiServer`] is a real Kubernetes API server, [`Faults`] what goes wrong between it and its clients.
//! * [`Etcd`] is a real etcd on one machine or three; [`echo`] the HTTP and UDP server for Pods with its clients; [`cni`]
//!   the container runtime that makes Pods through the plugin (`Runtime::run_pod`) or drives single verbs.
//! * [`Cluster::boot`] makes machines that run Debian's systemd: units, a D-Bus, a journal that a failed test prints, and a disk that
//!   outlives [`Cluster::reboot`] and [`Cluster::cut_power`].
//! * Waiting is [`eventually`] or [`Process::wait_for_line`], never a bare sleep. Everything started ends with its value.
//! * On failure the end of every process's log is printed below the error.
//! * A program that is no test (the demo, a benchmark) calls [`lab_kernel::ensure`] first of all: it returns on a kernel that has
//!   what is needed, or goes on as the same program inside the lab kernel.
//! * Variables: `NETD_LAB_WHERE=guest|host` forces the kernel, `NETD_LAB_KERNEL` names another lab kernel, `NETD_BIN_DIR` the
//!   folder of the programs under test.
//!
//! Invariant of the crate: traffic stays inside namespaces that the lab made, and a test that ends in any way, SIGKILL
//! included, leaves no process, namespace, mount or file behind.

mod absent;
mod booted;
mod cluster;
pub mod cni;
mod command;
pub mod confined;
mod deadline;
pub mod echo;
mod etcd;
mod evidence;
pub mod generic_netlink;
pub mod harness;
mod host;
mod isolation;
mod keeper;
pub mod kubernetes;
pub mod lab_kernel;
mod namespaces;
mod need;
mod place;
mod pod;
mod process;
mod programs;
pub mod rendered;
mod topology;

pub use absent::Absent;
pub use cluster::Cluster;
pub use command::{Command, Output};
pub use deadline::{allowing_for_load, eventually, throughout};
pub use etcd::Etcd;
pub use evidence::report as logs;
pub use host::Host;
pub use kubernetes::{ApiServer, Faults, KubeProxy};
pub use need::Need;
pub use place::Place;
pub use pod::Pod;
pub use process::Process;
pub use programs::{bin, bin_dir};
pub use rendered::RenderedCluster;
pub use topology::Topology;
