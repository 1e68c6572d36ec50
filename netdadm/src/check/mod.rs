//! Whether the values of a topology go together: each question a room, each answer a finding with its place.
//!
//! Pure. Invariant: every question is asked, whatever the others found; an error is what keeps a cluster from coming up
//! or lets it lose packets, a warning is what works and surprises.

mod addresses;
mod members;
mod networks;
mod ports;
mod subnets;
mod summary;
#[cfg(test)]
mod tests;
mod versions;

use crate::document::{self, Finding, Findings, Severity};
use crate::topology::{self, Topology};

use subnets::subnet_of;
pub(crate) use summary::summary;

/// What became of one file.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The topology, if it has no errors.
    pub(crate) topology: Option<Topology>,
    /// What is wrong with it, in the order of the file.
    pub(crate) findings: Vec<Finding>,
}

/// Reads the text of a topology and asks everything.
pub(crate) fn text(text: &str) -> Checked {
    let document = match document::parse(text) {
        Ok(document) => document,
        Err(finding) => return Checked { topology: None, findings: vec![finding] },
    };
    let topology::Reading { topology, mut findings } = topology::read(&document);
    if let Some(topology) = &topology {
        questions(topology, &mut findings);
    }
    let findings = findings.sorted();
    let sound = findings.iter().all(|finding| finding.severity == Severity::Warning);
    Checked { topology: topology.filter(|_| sound), findings }
}

fn questions(topology: &Topology, findings: &mut Findings) {
    networks::check(topology, findings);
    addresses::check(topology, findings);
    members::check(topology, findings);
    subnets::check(topology, findings);
    versions::check(topology, findings);
    ports::check(topology, findings);
}
