//! What to measure and how much of it.
//!
//! Invariant: every count has an upper bound, so no run takes longer than the bounds say.

use anyhow::{Context, Result, bail, ensure};

/// What the command line accepts, for error messages.
const USAGE: &str = "bench [--only cni|netd|path|proxy|local|vip|kubernetes|instructions] [--pods N] [--leases N,...] [--services N,...] \
     [--nodes N,...] [--endpoints N] [--rounds N] [--markdown]";

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The CNI plugin.
    Cni,
    /// The daemon that programs leases.
    Netd,
    /// Throughput and round trips between Pods.
    Path,
    /// The same inside the lab kernel, which has every backend; a part of [`Part::Path`] in a process of its own.
    PathLab,
    /// The Service proxy, on both of its data paths.
    Proxy,
    /// Its IPVS path, where the kernel has it; a part of [`Part::Proxy`] in a process of its own.
    ProxyIpvs,
    /// What an address for each Service costs beside one route for all of them, where the kernel has IPVS; measured when it is asked for.
    Local,
    /// Throughput, round trips and requests through a virtual address, on both data paths.
    Vip,
    /// The same on the IPVS path; a part of [`Part::Vip`] in a process of its own.
    VipIpvs,
    /// Both daemons at a Kubernetes API server; measured when it is asked for.
    Kube,
    /// The proxy's IPVS path on Debian's own kernel in QEMU, by instructions; measured when it is asked for.
    Instructions,
    /// `ipvs-proxy` and kube-proxy in the mode ipvs beside one API server, where the kernel has IPVS; measured when it is asked for.
    KubeIpvs,
}

/// The choices of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Only this part; all of them when absent.
    pub(crate) only: Option<Part>,
    /// Pods per round, 1 to 250: a /24 has no more addresses.
    pub(crate) pods: usize,
    /// Numbers of leases.
    pub(crate) leases: Vec<usize>,
    /// Numbers of Services.
    pub(crate) services: Vec<usize>,
    /// Numbers of Nodes in the Kubernetes API.
    pub(crate) nodes: Vec<usize>,
    /// Endpoints of each Service, 1 to 10.
    pub(crate) endpoints: usize,
    /// How often everything is repeated.
    pub(crate) rounds: usize,
    /// Print tables for docs/benchmarks.md.
    pub(crate) markdown: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: None,
            pods: 200,
            leases: vec![100, 1_000, 5_000, 10_000, 20_000],
            services: vec![100, 1_000, 10_000],
            nodes: vec![5_000],
            endpoints: 5,
            rounds: 5,
            markdown: false,
        }
    }
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// Names the flag and what it accepts.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(flag) = words.next() {
            let mut value = || words.next().with_context(|| format!("{flag} needs a value: {USAGE}"));
            match flag.as_str() {
                "--only" => options.only = Some(part(value()?)?),
                "--pods" => options.pods = count(flag, value()?, 250)?,
                "--rounds" => options.rounds = count(flag, value()?, 100)?,
                "--leases" => options.leases = counts(flag, value()?, 20_000)?,
                "--services" => options.services = counts(flag, value()?, 20_000)?,
                "--nodes" => options.nodes = counts(flag, value()?, 10_000)?,
                "--endpoints" => options.endpoints = count(flag, value()?, 10)?,
                "--markdown" => options.markdown = true,
                other => bail!("unknown flag {other:?}: {USAGE}"),
            }
        }
        Ok(options)
    }

    /// Whether a part is to be measured by this process.
    pub(crate) fn measures(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// The parts that somebody asks for by name.
const PARTS: &str = "cni, netd, path, proxy, local, vip, kubernetes, kubernetes-ipvs and instructions";

fn part(word: &str) -> Result<Part> {
    Ok(match word {
        "cni" => Part::Cni,
        "netd" => Part::Netd,
        "path" => Part::Path,
        "path-lab" => Part::PathLab,
        "proxy" => Part::Proxy,
        "proxy-ipvs" => Part::ProxyIpvs,
        "local" => Part::Local,
        "vip" => Part::Vip,
        "vip-ipvs" => Part::VipIpvs,
        "kubernetes" => Part::Kube,
        "kubernetes-ipvs" => Part::KubeIpvs,
        "instructions" => Part::Instructions,
        other => bail!("--only {other:?}: accepted are {PARTS}"),
    })
}

fn count(flag: &str, word: &str, most: usize) -> Result<usize> {
    let count = word.parse().with_context(|| format!("{flag} {word:?}: expected a number from 1 to {most}"))?;
    ensure!((1..=most).contains(&count), "{flag} {count}: expected a number from 1 to {most}");
    Ok(count)
}

fn counts(flag: &str, words: &str, most: usize) -> Result<Vec<usize>> {
    words.split(',').map(|word| count(flag, word, most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn last_word_wins_so_that_a_child_can_be_given_one_part() {
        let options = parse("--only cni --leases 10,20 --rounds 2 --only proxy").unwrap();
        assert_eq!(options.leases, [10, 20]);
        assert!(options.measures(Part::Proxy) && !options.measures(Part::Cni));
    }

    #[test]
    fn wrong_words_are_refused_by_name() {
        for (line, complaint) in [
            ("--pods 300", "--pods 300: expected a number from 1 to 250"),
            ("--leases 1,x", "--leases \"x\""),
            (
                "--only etcd",
                "accepted are cni, netd, path, proxy, local, vip, kubernetes, kubernetes-ipvs and instructions",
            ),
            ("--rounds", "--rounds needs a value"),
            ("--fast", "unknown flag"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(complaint), "{line} gave {error}");
        }
    }
}
