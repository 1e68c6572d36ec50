//! Reads what a configuration is made of: the file, the host, the TLS material.
//!
//! Invariant: every problem of flags and file is reported at once.

use std::path::Path;

use anyhow::Context;
use cluster::{Problem, Problems};
use daemon::shell::seed;
use netstate::Prefix;

use super::args::Invocation;
use super::config::{Config, Host};
use super::settings::document::{self, Document};
use super::settings::fields::path;
use super::settings::{Notes, Settings};

/// The configuration that the command line asks for, with the file as it is now.
///
/// # Errors
/// Everything that is wrong with it, or what the system says.
pub(crate) fn config(invocation: &Invocation) -> anyhow::Result<Config> {
    let name = nix::unistd::gethostname().context("read the host name")?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let host = Host {
        name: name.to_string_lossy().into_owned(),
        processors: u64::try_from(processors).unwrap_or(1),
        seed: seed(),
    };
    let file = invocation.flags.config.as_deref().map(file).transpose()?;
    Ok(Config::read(invocation, file.as_ref(), &host, invocation.flags.etcd.tls_files().read())?)
}

fn file(path: &str) -> anyhow::Result<Document> {
    let text = bounded::read_text(Path::new(path), bounded::SETTINGS)
        .with_context(|| format!("read the configuration file {path}"))?;
    Ok(document::parse(&text))
}

/// The settings of the command line and of its file.
fn settings(invocation: &Invocation) -> anyhow::Result<(Settings, Notes)> {
    let from = invocation.flags.config.as_deref();
    let file = from.map(file).transpose()?;
    let (settings, notes) = Settings::new(invocation.given.clone(), file.as_ref(), true);
    let mut list: Vec<Problem> = file.map(|file| file.problems).unwrap_or_default();
    list.extend(settings.problems());
    if !list.is_empty() {
        return Err(Problems { source: from.unwrap_or("command line and environment").to_owned(), list }.into());
    }
    Ok((settings, notes))
}

/// The networks in which nothing is touched, for who takes away what is left.
///
/// # Errors
/// Everything that is wrong with the settings, or what the system says.
pub(crate) fn excluded(invocation: &Invocation) -> anyhow::Result<Vec<Prefix>> {
    let (settings, _) = settings(invocation)?;
    Ok(settings.networks(path::EXCLUDED))
}

/// Writes the settings of the command line, and of its file, into the file `to`.
///
/// # Errors
/// Everything that is wrong with them, or what the system says.
pub(crate) fn write(invocation: &Invocation, to: &str) -> anyhow::Result<()> {
    let (settings, notes) = settings(invocation)?;
    notes.warnings.iter().for_each(|warning| daemon::terminal::note(warning));
    daemon::files::replace_kept(Path::new(to), settings.write()?.as_bytes())
        .map(drop)
        .with_context(|| format!("write the configuration to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_without_end_is_refused_with_what_is_accepted() {
        let error = format!("{:#}", file("/dev/zero").err().unwrap());
        assert!(error.contains("read the configuration file /dev/zero: it has more than 1048576 bytes"), "{error}");
    }
}
