//! The configuration file, followed while the daemon runs.
//!
//! Invariants: a file that is wrong, or that asks for what this kernel has not, changes nothing and is reported as long as it does; a
//! change that only a new start can take in ends the daemon, as kube-proxy ends, and the data path stays as it is.

use std::path::PathBuf;

use anyhow::bail;
use daemon::followed::FollowedFile;
use daemon::log::Log;
use tokio::sync::mpsc;

use crate::command::args::Invocation;
use crate::command::config::Config;
use crate::command::load;
use crate::command::settings::Settings;

/// What follows the file.
pub(super) struct Reload {
    invocation: Invocation,
    settings: Settings,
    log: Log,
    changes: mpsc::Receiver<()>,
    /// Keeps the channel open where there is no file.
    _sender: mpsc::Sender<()>,
    problem: Option<String>,
}

impl Reload {
    /// How the program was started.
    pub(super) fn words(&self) -> &[String] {
        &self.invocation.words
    }

    /// Follows the file of the command line, if it names one; `settings` are those that the daemon runs with.
    pub(super) fn new(invocation: Invocation, settings: Settings, log: Log) -> Self {
        let (sender, changes) = mpsc::channel(1);
        if let Some(path) = &invocation.flags.config {
            tokio::spawn(follow(path.into(), sender.clone()));
        }
        Self { invocation, settings, log, changes, _sender: sender, problem: None }
    }

    /// What is wrong with the file as it is now.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Waits until the file has changed, and returns the configuration that is to be taken in. A call that is given up loses nothing.
    ///
    /// # Errors
    /// When the change takes a new start.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Config>> {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        match load::config(&self.invocation) {
            Ok(config) => self.judge(config),
            Err(error) => {
                self.refuse(&error);
                Ok(None)
            }
        }
    }

    fn judge(&mut self, config: Config) -> anyhow::Result<Option<Config>> {
        let (names, at_start) = self.settings.differences(&config.settings);
        if !at_start.is_empty() {
            bail!(
                "{} changed, which takes a new start of this program ({}); the data path stays as it is meanwhile",
                names.join(", "),
                at_start.join("; ")
            );
        }
        if names.is_empty() {
            self.problem = None;
        }
        Ok(Some(config).filter(|_| !names.is_empty()))
    }

    /// The configuration is in force.
    pub(super) fn accept(&mut self, config: &Config) {
        let (names, _) = self.settings.differences(&config.settings);
        self.problem = None;
        self.settings = config.settings.clone();
        self.log.restore_to(config.log.verbosity);
        config.notes.log();
        tracing::info!("{} changed and is in force", names.join(", "));
    }

    /// The configuration cannot be in force.
    pub(super) fn refuse(&mut self, error: &anyhow::Error) {
        let reason = format!("{error:#}; the configuration of before stays in force");
        tracing::error!("{reason}");
        self.problem = Some(reason);
    }
}

/// Reports each change of the file behind the first reading.
async fn follow(path: PathBuf, changes: mpsc::Sender<()>) {
    let mut file = FollowedFile::new(path);
    loop {
        // The first text may be another one already than the daemon has started with.
        let _ = file.next().await;
        if changes.send(()).await.is_err() {
            return;
        }
    }
}
