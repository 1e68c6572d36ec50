//! Checks the topology of a cluster: one file of hosts, networks and versions.

mod document;
mod topology;
