//! `netd-cni`: executed by a container runtime, once per verb; and by an operator, to install it.

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use cni_plugin::{CLEANUP_USAGE, Cleanup, Install, InstallError, SpecVersion, USAGE};
use kernel::arena::Arena;
use nix::sys::stat::{Mode, umask};

/// A call is over before memory that was given back could be needed again.
#[global_allocator]
static MEMORY: Arena = Arena::new();

fn main() -> ExitCode {
    let mut words = env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = words.next().unwrap_or_default();
    match words.next() {
        // Runtimes pass no arguments.
        None if env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty()) => {
            aside(&about());
            ExitCode::SUCCESS
        }
        None => serve(&program),
        Some(word) if word == "install" => install(words),
        Some(word) if word == "cleanup" => cleanup(words),
        Some(word) if ["--help", "-h", "help"].contains(&word.as_str()) => put(&about()),
        Some(word) if ["--version", "-V"].contains(&word.as_str()) => {
            put(concat!("netd-cni ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Some(word) => {
            aside(&format!("unknown command {}\n{USAGE}\n{CLEANUP_USAGE}\n", printable(&word)));
            ExitCode::from(2)
        }
    }
}

fn serve(program: &str) -> ExitCode {
    let begun = Instant::now();
    // What is written is everybody's to read and root's to write, whatever the runtime's mask is.
    umask(Mode::from_bits_truncate(0o022));
    // A value that is no UTF-8 is refused by what reads it, not taken for missing.
    let variable = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let answer = cni_plugin::serve(program, variable, &mut io::stdin().lock());
    let printed = io::stdout().lock().write_all(answer.stdout.as_bytes());
    if let Some(counted) = answer.counted {
        // Numbers are worth no word in a runtime's log.
        let _ = counted.count(Path::new(netstate::calls::PATH), begun.elapsed());
    }
    match printed {
        Ok(()) => ExitCode::from(answer.code),
        // The runtime closed its end: nobody is left to report more to.
        Err(_) => ExitCode::FAILURE,
    }
}

/// What an operator sees who just calls the binary; skel does the same.
fn about() -> String {
    let spoken = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
    format!(
        "netd-cni {}: CNI plugin, protocol versions {spoken}\nA container runtime calls it with CNI_COMMAND set.\n{USAGE}\n{CLEANUP_USAGE}\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn cleanup(words: impl Iterator<Item = String>) -> ExitCode {
    let Some(cleanup) = Cleanup::parse(words) else {
        aside(&format!("{CLEANUP_USAGE}\n"));
        return ExitCode::from(2);
    };
    let cleaned = cleanup.run();
    let printed = put(&printable(&cleaned.text));
    let Some(error) = cleaned.failure else { return printed };
    aside(&format!("netd-cni cleanup: {}\n", printable(&error.to_string())));
    ExitCode::FAILURE
}

fn install(words: impl Iterator<Item = String>) -> ExitCode {
    let installed = Install::parse(words).and_then(|install| install.run(Path::new("/proc/self/exe")));
    match installed {
        Ok(paths) => put(&paths.iter().map(|path| format!("installed {}\n", path.display())).collect::<String>()),
        Err(error) => {
            aside(&format!("netd-cni install: {}\n", printable(&error.to_string())));
            ExitCode::from(if matches!(error, InstallError::Usage(_)) { 2 } else { 1 })
        }
    }
}

/// Prints `text`; whoever reads it may have read enough, as `head` has.
fn put(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            aside(&format!("netd-cni: write to standard output: {error}\n"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints `text` on standard error, whether somebody takes it or not.
fn aside(text: &str) {
    // There is no other place to say so.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// `text`, of which much is from files, without what drives a terminal; its lines stay.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '"' | '\'' | '\\' => printable.push(letter),
            letter => printable.extend(letter.escape_debug()),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_text_of_a_file_drives_no_terminal() {
        let text = "network Pöd's \"a\\b\" \u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{61c}\u{2028}\nremoved\n";
        let printed = "network Pöd's \"a\\b\" \\u{1b}[2J\\u{9b}2J\\u{7f}\\u{202e}\\u{61c}\\u{2028}\nremoved\n";
        assert_eq!(super::printable(text), printed);
    }
}
