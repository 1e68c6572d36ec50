//! The command line, and what each verb reads, prints and ends with.
//!
//! Invariant: what a verb found stands on standard output, what kept it from finding anything on standard error; status 0
//! is a topology without errors, 1 one with errors, 2 one that was not read.

mod apply;
mod args;
mod backup;
mod certs;
mod etcd;
mod node;
mod preflight;
mod render;
mod renew;
mod status;
mod verify;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use args::{Invocation, Verb, command};
use clap::{FromArgMatches, error::ErrorKind};
use daemon::terminal;

/// Nothing was checked: the command line or a file.
const NOT_DONE: u8 = 2;

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match run(std::env::args_os(), &mut io::stdout().lock()) {
        Ok(status) => status,
        Err(message) => {
            terminal::note(&format!("netdadm: {message}"));
            ExitCode::from(NOT_DONE)
        }
    }
}

fn run(words: impl Iterator<Item = OsString>, out: &mut impl Write) -> Result<ExitCode, String> {
    let parsed = command().try_get_matches_from(words).and_then(|found| Invocation::from_arg_matches(&found));
    let invocation = match parsed {
        Ok(invocation) => invocation,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            error.print().map_err(|cause| format!("write what was asked: {cause}"))?;
            return Ok(if asked { ExitCode::SUCCESS } else { ExitCode::from(NOT_DONE) });
        }
    };
    match invocation.verb {
        Verb::Apply(asked) => apply::run(&asked, out),
        Verb::Check(asked) => verify::run(&asked, out),
        Verb::Render(asked) => render::run(&asked, out),
        Verb::Certs(asked) => certs::run(&asked.verb, out),
        Verb::Preflight(asked) => preflight::run(&asked, out),
        Verb::Status(asked) => status::run(&asked, out),
        Verb::Node(asked) => node::run(&asked.verb, out),
        Verb::Etcd(asked) => etcd::run(&asked.verb, out),
        Verb::Backup(asked) => backup::run(&asked, out),
        Verb::Restore(asked) => backup::restore(&asked, out),
        Verb::Completions(asked) => written(out, &asked.render(command())),
        Verb::Man(pages) => {
            let folder = pages.folder.display().to_string();
            pages
                .write(&command())
                .map(|()| ExitCode::SUCCESS)
                .map_err(|cause| format!("write pages into {folder}: {cause}"))
        }
    }
}

/// Writes lines for a person. Names and words of others among them drive no terminal.
fn said(out: &mut impl Write, text: &str) -> Result<ExitCode, String> {
    written(out, terminal::plain(text).as_bytes())
}

fn written(out: &mut impl Write, bytes: &[u8]) -> Result<ExitCode, String> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // Whoever reads has read enough.
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(cause) => Err(format!("write to standard output: {cause}")),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_named_drives_no_terminal() {
        let mut printed = Vec::new();
        said(&mut printed, "  the member a\u{1b}[2J\u{9b}2J\u{202e}\r\n  of pöds\n").unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(printed, "  the member a\\u{1b}[2J\\u{9b}2J\\u{202e}\\r\n  of pöds\n");
    }

    #[test]
    fn a_topology_drives_no_terminal_and_forges_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        std::fs::write(&file, "\"a\\e[2J\\ncluster.yaml: 0 errors\": 1\n").unwrap();
        let words = ["netdadm".into(), "check".into(), "-f".into(), file.into_os_string()];
        let mut printed = Vec::new();
        run(words.into_iter(), &mut printed).unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert!(printed.contains("a\\u{1b}[2J\\ncluster.yaml: 0 errors: no such field"), "{printed}");
        assert!(!printed.contains('\u{1b}'), "{printed}");
    }
}
