//! Where something can run: a machine or a Pod.
//!
//! Invariant: whatever works in a [`Place`] uses that place's network and its machine's files, never the test's own.

use std::ffi::OsStr;

use anyhow::Result;

use crate::command::{Command, Output, program_and_args};

/// A machine or a Pod, for what works the same in both: commands, sockets, servers.
pub trait Place: Sync {
    /// Name for messages.
    fn label(&self) -> String;

    /// A command that will run here.
    fn command(&self, program: &OsStr) -> Command;

    /// Runs `work` on a thread of this place: sockets it opens belong here.
    ///
    /// # Errors
    /// When the thread cannot enter.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T>;

    /// Runs a command line to its end and requires success.
    ///
    /// # Errors
    /// As [`Command::run`].
    fn run(&self, words: &[&str]) -> Result<Output> {
        let (program, args) = program_and_args(words)?;
        self.command(OsStr::new(program)).args(args).run()
    }
}
