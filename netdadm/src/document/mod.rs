//! The topology file as text and as a tree whose nodes know where they begin, and the findings about it.
//!
//! Invariant: whatever is said about a file names its line and column, and everything is said at once.

mod fields;
mod finding;
mod forms;
mod tree;

pub(crate) use fields::{Fields, Located, elements, entries, scalar};
pub(crate) use finding::{Finding, Findings, Severity};
pub(crate) use forms::Form;
pub(crate) use tree::{Content, Entry, Node, Position, parse};
