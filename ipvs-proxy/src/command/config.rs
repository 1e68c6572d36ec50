//! What the command line means.
//!
//! Invariant: everything wrong is reported at once, each with its flag and the accepted form, and nothing is touched before
//! everything is right.

use std::path::PathBuf;
use std::time::Duration;

use cluster::etcd::{Client, Prefix, TlsMaterial};
use cluster::{Problem, Problems};
use daemon::flags::bind_address;
use daemon::http::{Address, Routes};
use daemon::log;
use daemon::shell::Places;
use kernel::ipvs::Timeouts;
use netstate::Prefix as Network;

use super::duration;
use crate::command::args::Flags;
use crate::source::Place;

/// kube-proxy's ports.
const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where Services and EndpointSlices come from.
    pub(crate) place: Place,
    /// The Pod network.
    pub(crate) pods: Network,
    /// The Service network, if given.
    pub(crate) services: Option<Network>,
    /// Name of this node, as EndpointSlices write it.
    pub(crate) node: String,
    /// The kernel's name of the scheduler for every virtual server.
    pub(crate) scheduler: String,
    /// Longest time of a drain.
    pub(crate) grace: Duration,
    /// Time-outs of IPVS in seconds, 0 where the kernel's stay.
    pub(crate) timeouts: Timeouts,
    /// Folder of run-time files, and where HTTP is served.
    pub(crate) places: Places,
    /// Form and detail of the log.
    pub(crate) log: log::Settings,
}

/// Everything wrong with the command line, each under its flag.
pub(crate) fn of_the_command_line(problems: impl IntoIterator<Item = Problem>) -> Problems {
    let list = problems.into_iter().map(|problem| problem.under("--")).collect();
    Problems { source: "command line and environment".to_owned(), list }
}

/// Collects problems while everything is read.
#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn problem(&mut self, field: &'static str, message: String, accepted: &'static str) {
        self.problems.push(Problem::new(field, message, accepted));
    }

    fn network(&mut self, field: &'static str, text: Option<&str>) -> Option<Network> {
        let text = text?;
        let accepted = "one IPv4 network such as 172.7.0.0/16";
        match text.parse::<Network>() {
            Ok(network) if network.is_ipv4() && !network.is_default() => Some(network),
            _ => {
                self.problem(field, format!("{text:?}"), accepted);
                None
            }
        }
    }

    fn duration(&mut self, field: &'static str, text: &str) -> Duration {
        duration::parse(text).unwrap_or_else(|| {
            self.problem(field, format!("{text:?}"), "a time such as 15m, 90s or 1h30m");
            Duration::ZERO
        })
    }

    /// A time-out in whole seconds as the kernel takes it.
    fn seconds(&mut self, field: &'static str, text: &str) -> u32 {
        /// The kernel refuses more than INT_MAX / HZ, HZ being 1000 at most.
        const MOST: Duration = Duration::from_secs(2_147_483);
        let time = self.duration(field, text);
        let whole = time.subsec_nanos() == 0 && time <= MOST;
        match u32::try_from(time.as_secs()) {
            Ok(seconds) if whole => seconds,
            _ => {
                self.problem(field, format!("{text:?}"), "whole seconds up to 2147483s, 0 leaves the kernel's");
                0
            }
        }
    }

    fn place(&mut self, flags: &Flags, tls: TlsMaterial, seed: u64) -> Option<Place> {
        let accepted = "either etcd-endpoints or services-dir";
        match (&flags.services_dir, &flags.etcd.etcd_endpoints) {
            (Some(dir), None) if !dir.is_empty() => Some(Place::Directory(dir.into())),
            (None, Some(_)) => self.store(flags, tls, seed).map(|(client, prefix)| Place::Etcd(client, prefix)),
            (Some(_), Some(_)) => {
                self.problem("services-dir", "given together with etcd-endpoints".to_owned(), accepted);
                None
            }
            _ => {
                self.problem("etcd-endpoints", "missing".to_owned(), accepted);
                None
            }
        }
    }

    fn store(&mut self, flags: &Flags, tls: TlsMaterial, seed: u64) -> Option<(Client, Prefix)> {
        let client =
            Client::new(&flags.etcd.client_config(tls), seed).map_err(|found| self.problems.extend(found)).ok();
        let prefix = Prefix::parse("etcd-prefix", flags.etcd.etcd_prefix.as_deref().unwrap_or_default())
            .map_err(|found| self.problems.push(found))
            .ok();
        client.zip(prefix)
    }

    fn node(&mut self, flags: &Flags, hostname: &str) -> String {
        // Kubernetes writes node names in lower case (kubelet's --hostname-override, util/node.GetHostname).
        let node = flags.hostname_override.as_deref().unwrap_or(hostname).trim().to_lowercase();
        if node.is_empty() {
            self.problem("hostname-override", "no name".to_owned(), "this node's name in EndpointSlices");
        }
        node
    }

    fn scheduler(&mut self, flags: &Flags) -> String {
        let scheduler = &flags.ipvs_scheduler;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if scheduler.is_empty() || scheduler.len() > 15 || !scheduler.bytes().all(plain) {
            let accepted = "the kernel's name of a scheduler, 1 to 15 letters: rr, wrr, lc, wlc, sh, mh, ...";
            self.problem("ipvs-scheduler", format!("{scheduler:?}"), accepted);
        }
        scheduler.clone()
    }

    fn places(&mut self, flags: &Flags) -> Places {
        let mut listeners = Vec::new();
        for (field, text, port, routes) in [
            ("healthz-bind-address", &flags.healthz_bind_address, HEALTHZ_PORT, Routes::Health),
            ("metrics-bind-address", &flags.metrics_bind_address, METRICS_PORT, Routes::All),
        ] {
            match bind_address(field, text, port) {
                Ok(address) => listeners.extend(address.map(|address| (Address::Tcp(address), routes))),
                Err(problem) => self.problems.push(problem),
            }
        }
        Places { run_dir: run_dir(flags), listeners }
    }

    fn done<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(of_the_command_line(self.problems)),
        }
    }
}

impl Config {
    /// Reads the flags; `hostname` is this host's name, `tls` what the TLS files hold, `seed` spreads the nodes over etcd's
    /// members.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn read(flags: &Flags, hostname: &str, tls: TlsMaterial, seed: u64) -> Result<Self, Problems> {
        let mut reader = Reader::default();
        let place = reader.place(flags, tls, seed);
        if flags.cluster_cidr.is_none() {
            let message = "missing: without it nobody knows which clients must be masqueraded".to_owned();
            reader.problem("cluster-cidr", message, "the Pod network, such as 172.7.0.0/16");
        }
        let pods = reader.network("cluster-cidr", flags.cluster_cidr.as_deref());
        let services = reader.network("service-cidr", flags.service_cidr.as_deref());
        let (node, scheduler) = (reader.node(flags, hostname), reader.scheduler(flags));
        let grace = reader.duration("ipvs-graceful-period", &flags.ipvs_graceful_period);
        let timeouts = Timeouts {
            tcp: reader.seconds("ipvs-tcp-timeout", &flags.ipvs_tcp_timeout),
            tcp_fin: reader.seconds("ipvs-tcpfin-timeout", &flags.ipvs_tcpfin_timeout),
            udp: reader.seconds("ipvs-udp-timeout", &flags.ipvs_udp_timeout),
        };
        let places = reader.places(flags);
        let log = flags.log.read(&mut reader.problems);
        let config = place.zip(pods);
        let config =
            config.map(|(place, pods)| Self { place, pods, services, node, scheduler, grace, timeouts, places, log });
        reader.done(config)
    }
}

/// The folder of run-time files.
#[must_use]
pub(crate) fn run_dir(flags: &Flags) -> PathBuf {
    flags.run.run_dir.clone().unwrap_or_default().into()
}

/// Reads the flags that say where etcd is, for the commands that work on it.
///
/// # Errors
/// Everything that is wrong.
pub(crate) fn read_store(flags: &Flags, tls: TlsMaterial, seed: u64) -> Result<(Client, Prefix), Problems> {
    let mut reader = Reader::default();
    if flags.etcd.etcd_endpoints.is_none() {
        reader.problem("etcd-endpoints", "missing".to_owned(), "http://HOST:PORT,... or https://HOST:PORT,...");
        return reader.done(None);
    }
    let store = reader.store(flags, tls, seed);
    reader.done(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::args::Invocation;

    fn read(words: &[&str]) -> Result<Config, Problems> {
        let words = std::iter::once("ipvs-proxy").chain(words.iter().copied());
        Config::read(
            &Invocation::read(words.map(Into::into)).unwrap().flags,
            "HDSS7-21.host.com",
            TlsMaterial::default(),
            1,
        )
    }

    fn fields(words: &[&str]) -> Vec<String> {
        read(words).map_or_else(
            |problems| problems.list.into_iter().map(|p| p.field.trim_start_matches("--").to_owned()).collect(),
            |_| Vec::new(),
        )
    }

    const GOOD: [&str; 2] = ["--etcd-endpoints=http://10.4.7.12:2379", "--cluster-cidr=172.7.0.0/16"];

    #[test]
    fn defaults_are_round_robin_and_fifteen_minutes() {
        let config = read(&GOOD).unwrap();
        assert_eq!((config.scheduler.as_str(), config.grace.as_secs()), ("rr", 900));
        assert_eq!(config.node, "hdss7-21.host.com");
        assert!(matches!(config.place, Place::Etcd(..)));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_flag() {
        assert_eq!(
            fields(&[
                "--etcd-endpoints=ftp://x",
                "--cluster-cidr=172.7.0.0",
                "--service-cidr=fd00::/48",
                "--ipvs-scheduler=R R",
                "--ipvs-graceful-period=15",
                "--ipvs-udp-timeout=500ms",
                "--etcd-prefix=/",
                "--metrics-bind-address=here",
                "--log-format=xml",
                "--v=loud",
            ]),
            [
                "etcd-endpoints",
                "etcd-prefix",
                "cluster-cidr",
                "service-cidr",
                "ipvs-scheduler",
                "ipvs-graceful-period",
                "ipvs-udp-timeout",
                "metrics-bind-address",
                "log-format",
                "v"
            ]
        );
        assert_eq!(fields(&[]), ["etcd-endpoints", "cluster-cidr"]);
        assert_eq!(fields(&["--services-dir=/x", GOOD[0], GOOD[1]]), ["services-dir"]);
    }

    #[test]
    fn problems_read_as_lines_with_the_flag_in_front() {
        let text = read(&["--services-dir=/x", "--cluster-cidr=all"]).unwrap_err().to_string();
        assert_eq!(
            text,
            "command line and environment: 1 problem\n  --cluster-cidr: \"all\"; accepted: one IPv4 network such as 172.7.0.0/16"
        );
    }
}
