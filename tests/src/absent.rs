//! Why a test cannot run on this machine.
//!
//! Invariant: what a command of this tree can put right is a failure where it is required, and what nobody can get here never is; neither
//! counts as passed.

use std::fmt;

/// What is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// It has not been installed or built, and can be.
    Missing(String),
    /// It cannot be had on this machine, whoever requires it.
    CannotBeHad(String),
}

impl From<String> for Absent {
    fn from(reason: String) -> Self {
        Self::Missing(reason)
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Missing(reason) | Self::CannotBeHad(reason)) = self;
        f.write_str(reason)
    }
}

impl std::error::Error for Absent {}
