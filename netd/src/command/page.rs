//! Who may see the page, and where what it shows is from.

use std::path::PathBuf;

use cluster::Problem;

/// Who may see the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Whoever is on this host.
    Loopback,
    /// Whoever reaches the address for metrics.
    Network,
    /// Nobody.
    Off,
}

/// What the command line says of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Who may see it.
    pub(crate) shown: Shown,
    /// This daemon's folder of run-time files.
    pub(crate) run_dir: PathBuf,
    /// ipvs-proxy's on this host.
    pub(crate) proxy_dir: PathBuf,
}

impl Shown {
    /// What the flag `--page` says.
    ///
    /// # Errors
    /// When it is none of the three words.
    pub(crate) fn of(text: &str) -> Result<Self, Problem> {
        match text {
            "loopback" => Ok(Self::Loopback),
            "network" => Ok(Self::Network),
            "off" => Ok(Self::Off),
            _ => Err(Problem::new("--page", format!("{text:?}"), "loopback, network or off")),
        }
    }
}
