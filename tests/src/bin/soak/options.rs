//! What the command line asks for.
//!
//! Invariant: a run is repeated by its seed and the same other options; the seed is printed in any case.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Need;

/// Usage, as an unknown option answers it.
const USAGE: &str = "usage: soak [--minutes N] [--seed N] [--backend vxlan|host-gw|ipip|wireguard] [--proxy nftables|ipvs] [--keep FOLDER]
  --minutes N   how long, 5 without it; a last quiet point comes after that
  --seed N      the schedule to run, one drawn by chance without it
  --keep FOLDER where to leave what is needed to find out why, target/soak without it";

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    pub(crate) backend: String,
    pub(crate) proxy: String,
    pub(crate) folder: PathBuf,
    /// Breaks each invariant on purpose behind the first quiet point, to see that it is found.
    pub(crate) violate: bool,
}

impl Options {
    /// Reads the words of a command line.
    ///
    /// # Errors
    /// With the usage.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let folder = lab::bin_dir()?.parent().context("programs lie in a folder")?.join("soak");
        let mut options = Self {
            time: Duration::from_secs(300),
            seed: fastrand::u64(..1_000_000),
            backend: "vxlan".to_owned(),
            proxy: "nftables".to_owned(),
            folder,
            violate: false,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().filter(|value| !value.is_empty()).context(USAGE);
            match word.as_str() {
                "--minutes" => options.time = minutes(&value()?)?,
                "--seed" => options.seed = value()?.parse().context(USAGE)?,
                "--backend" => options.backend = value()?,
                "--proxy" => options.proxy = value()?.replace("auto", "nftables"),
                "--keep" => options.folder = PathBuf::from(value()?),
                "--violate" => options.violate = true,
                other => bail!("{other}: {USAGE}"),
            }
        }
        options.needs().map(|_| options)
    }

    /// What the kernel must have.
    ///
    /// # Errors
    /// For a backend or a data path that there is none of.
    pub(crate) fn needs(&self) -> Result<Vec<Need>> {
        let mut needs = vec![Need::Nftables];
        match self.backend.as_str() {
            "vxlan" => needs.push(Need::Vxlan),
            "host-gw" => {}
            "ipip" => needs.push(Need::IpIp),
            "wireguard" => needs.push(Need::WireGuard),
            other => bail!("BACKEND={other:?}: accepted are vxlan, host-gw, ipip, wireguard"),
        }
        match self.proxy.as_str() {
            "nftables" => {}
            "ipvs" => needs.extend([Need::IpVs, Need::Dummy]),
            other => bail!("PROXY={other:?}: accepted are nftables, ipvs"),
        }
        Ok(needs)
    }
}

fn minutes(text: &str) -> Result<Duration> {
    let minutes: f64 = text.parse().context(USAGE)?;
    Duration::try_from_secs_f64(minutes * 60.0).context(USAGE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_and_others_are_refused() {
        let options = parse("--minutes 0.5 --seed 7 --backend host-gw").unwrap();
        assert_eq!((options.time, options.seed, options.backend.as_str()), (Duration::from_secs(30), 7, "host-gw"));
        assert_eq!(parse("").unwrap().time, Duration::from_secs(300));
        for line in ["--minutes", "--minutes many", "--minutes -1", "--backend udp", "--proxy iptables", "--fast"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
