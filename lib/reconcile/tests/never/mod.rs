//! The error of a table in memory that refuses nothing.

use std::fmt;

use reconcile::{Classify, RetryClass};

#[derive(Debug)]
pub(crate) struct Never;

impl fmt::Display for Never {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("never")
    }
}

impl std::error::Error for Never {}

impl Classify for Never {
    fn class(&self) -> RetryClass {
        RetryClass::Retry
    }
}
