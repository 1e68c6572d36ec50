//! `Flags`: the command line of a component, one flag a line.
//!
//! Invariant: each flag stands there once; what the topology says of one comes before what a room says.

use std::fmt;

use crate::topology::{Component, Topology};

/// The flags of a component in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub(super) struct Flags(Vec<(String, String)>);

impl Flags {
    /// Adds a flag, or gives it another value.
    pub(super) fn set(&mut self, name: &str, value: impl ToString) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, found)) => *found = value.to_string(),
            None => self.0.push((name.to_owned(), value.to_string())),
        }
    }

    /// Adds what the topology says of `component`.
    pub(super) fn deviate(&mut self, topology: &Topology, component: Component) {
        for (name, value) in topology.deviations.flags(component) {
            self.set(name, value);
        }
    }
}

impl fmt::Display for Flags {
    /// Behind the path of a program in a unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| write!(f, " \\\n  --{name}={value}"))
    }
}
