//! What the command line means.
//!
//! Invariant: everything wrong is reported at once, each with its flag and the accepted form, and nothing is touched before
//! everything is right.

mod parameters;
mod place;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cluster::etcd::{Client, Prefix, TlsMaterial};
use cluster::{Problem, Problems};
use daemon::flags::{LogFlags, bind_address};
use daemon::http::{Address, Routes};
use daemon::log;
use daemon::shell::Places;
use kernel::ipvs::Timeouts;
use netstate::family::PerFamily;
use netstate::ipvs::Scheduler;
use netstate::{Prefix as Network, SysctlKey};

use super::args::{Flags, Invocation};
use super::duration;
use super::node;
use super::service_metrics::ServiceMetrics;
use super::settings::document::Document;
use super::settings::fields::path;
use super::settings::{Notes, Settings};
use crate::plan::here::Facts;
use crate::plan::pods::PodsOfFamilies;
use crate::source::Place;

/// The scheduler where none is named.
const SCHEDULER: &str = "rr";

/// Where flags are from.
const COMMAND_LINE: &str = "command line and environment";

/// What the daemon needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Where Services and EndpointSlices come from.
    pub(crate) place: Place,
    /// The Pod networks that are given.
    pub(crate) pods: Networks,
    /// The Service networks that are given.
    pub(crate) services: Networks,
    /// Networks of Services that are to be local by a route each.
    pub(crate) local: Vec<Network>,
    /// Name of this node, as EndpointSlices write it.
    pub(crate) node: String,
    /// What is said of this node.
    pub(crate) facts: Facts,
    /// Which data path is used.
    pub(crate) mode: Mode,
    /// The scheduler of every virtual server whose Service asks for none.
    pub(crate) scheduler: Scheduler,
    /// Networks in which what stands on the link of virtual addresses is others'.
    pub(crate) excluded: Vec<Network>,
    /// Longest time of a drain.
    pub(crate) grace: Duration,
    /// What `/metrics` says of each Service.
    pub(crate) service_metrics: ServiceMetrics,
    /// Time-outs of IPVS in seconds, 0 where the kernel's stay.
    pub(crate) timeouts: Timeouts,
    /// Folder of run-time files, and where HTTP is served.
    pub(crate) places: Places,
    /// Form and detail of the log.
    pub(crate) log: log::Settings,
    /// Kernel parameters beside those that the data path needs.
    pub(crate) parameters: BTreeMap<SysctlKey, String>,
    /// The settings that this was read from.
    pub(crate) settings: Settings,
    /// Settings without effect.
    pub(crate) notes: Notes,
}

/// At most one network of each family.
pub(crate) type Networks = PerFamily<Option<Network>>;

/// The networks in a text of one or two, in whatever order.
fn per_family(text: &str) -> Option<Networks> {
    let mut found = Networks::default();
    for word in text.split(',') {
        let network: Network = word.trim().parse().ok().filter(|network: &Network| !network.is_default())?;
        if found.get_mut(network.family()).replace(network).is_some() {
            return None;
        }
    }
    Some(found)
}

/// Which data path is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// IPVS.
    Ipvs,
    /// nftables.
    Nftables,
    /// IPVS where the kernel has it, nftables elsewhere.
    Auto,
}

/// Everything wrong with the command line, each under its flag.
pub(crate) fn of_the_command_line(problems: impl IntoIterator<Item = Problem>) -> Problems {
    let list = problems.into_iter().map(|problem| problem.under("--")).collect();
    Problems { source: COMMAND_LINE.to_owned(), list }
}

/// Collects problems while everything is read.
struct Reader<'a> {
    settings: &'a Settings,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// A problem with a flag.
    fn flag(&mut self, flag: &'static str, message: String, accepted: &'static str) {
        self.problems.push(Problem::new(format!("--{flag}"), message, accepted));
    }

    /// A problem with a setting.
    fn setting(&mut self, key: &str, accepted: &str) {
        let found = format!("{:?}", self.settings.text(key));
        self.problems.push(Problem::new(self.settings.name(key), found, accepted));
    }

    /// Everything wrong with the form of the settings, or with what they ask for.
    fn forms(&mut self) {
        self.problems.extend(self.settings.problems());
    }

    /// Pod networks, at most one of a family.
    fn pods(&mut self) -> Option<Networks> {
        let text = self.settings.text(path::CLUSTER_CIDR);
        if text.is_empty() {
            return Some(Networks::default());
        }
        let found = per_family(text);
        // What is no network at all is reported by its form.
        if found.is_none() && text.split(',').all(|word| word.parse::<Network>().is_ok()) {
            let accepted =
                "one network such as 172.7.0.0/16 or fd00:7::/48, or one of each family with a comma between them";
            self.setting(path::CLUSTER_CIDR, accepted);
        }
        found
    }

    /// How clients are known for Pods, where these are the Pod networks.
    fn detection(&mut self, networks: Networks) -> PodsOfFamilies {
        node::pods(self.settings, networks).unwrap_or_else(|(key, accepted)| {
            self.setting(key, accepted);
            PodsOfFamilies::default()
        })
    }

    fn services(&mut self, flags: &Flags) -> Networks {
        let Some(text) = flags.service_cidr.as_deref() else { return Networks::default() };
        per_family(text).unwrap_or_else(|| {
            let accepted =
                "one network such as 192.168.0.0/16 or fd00:9::/108, or one of each family with a comma between them";
            self.flag("service-cidr", format!("{text:?}"), accepted);
            Networks::default()
        })
    }

    /// Networks that are to be local.
    fn local(&mut self) -> Vec<Network> {
        node::local(self.settings).unwrap_or_else(|accepted| {
            self.setting(path::LOCAL, accepted);
            Vec::new()
        })
    }

    fn grace(&mut self, flags: &Flags) -> Duration {
        let text = &flags.ipvs_graceful_period;
        duration::parse(text).unwrap_or_else(|| {
            self.flag("ipvs-graceful-period", format!("{text:?}"), "a time such as 15m, 90s or 1h30m");
            Duration::ZERO
        })
    }

    fn service_metrics(&mut self, flags: &Flags) -> ServiceMetrics {
        ServiceMetrics::of_word(&flags.service_metrics).unwrap_or_else(|| {
            self.flag("service-metrics", format!("{:?}", flags.service_metrics), ServiceMetrics::FORM);
            ServiceMetrics::Off
        })
    }

    /// A time in whole seconds as the kernel takes it, 0 leaves the kernel's.
    fn seconds(&mut self, key: &str) -> u32 {
        /// The kernel refuses more than INT_MAX / HZ, HZ being 1000 at most.
        const MOST: Duration = Duration::from_secs(2_147_483);
        // What is no time is reported by its form.
        let time = duration::parse(self.settings.text(key)).unwrap_or_default();
        let whole = time.subsec_nanos() == 0 && time <= MOST;
        match u32::try_from(time.as_secs()) {
            Ok(seconds) if whole => seconds,
            _ => {
                self.setting(key, "whole seconds up to 2147483s, 0 leaves the kernel's");
                0
            }
        }
    }

    fn node(&mut self, hostname: &str) -> String {
        // Kubernetes writes node names in lower case (kubelet's --hostname-override, util/node.GetHostname).
        let given = self.settings.is_given(path::HOSTNAME).then(|| self.settings.text(path::HOSTNAME));
        let node = given.unwrap_or(hostname).trim().to_lowercase();
        if node.is_empty() {
            self.setting(path::HOSTNAME, "this node's name in EndpointSlices");
        }
        node
    }

    /// What is none of these is reported by its form.
    fn mode(&self) -> Mode {
        match self.settings.text(path::MODE) {
            "ipvs" => Mode::Ipvs,
            "nftables" => Mode::Nftables,
            _ => Mode::Auto,
        }
    }

    fn scheduler(&mut self) -> Scheduler {
        let text = self.settings.text(path::SCHEDULER);
        let text = if text.is_empty() { SCHEDULER } else { text };
        text.parse().unwrap_or_else(|_| {
            self.setting(path::SCHEDULER, Scheduler::FORM);
            SCHEDULER.to_owned().into()
        })
    }

    fn places(&mut self, flags: &Flags) -> Places {
        let mut listeners = Vec::new();
        for (key, port, routes) in
            [(path::HEALTHZ, path::HEALTHZ_PORT, Routes::Health), (path::METRICS, path::METRICS_PORT, Routes::All)]
        {
            // What is no port is reported by its form.
            let port: u16 = self.settings.text(port).parse().unwrap_or(1);
            match bind_address(&self.settings.name(key), self.settings.text(key), port) {
                Ok(_) if port == 0 => {}
                Ok(address) => listeners.extend(address.map(|address| (Address::Tcp(address), routes))),
                Err(problem) => self.problems.push(problem),
            }
        }
        Places { run_dir: run_dir(flags), written: Vec::new(), listeners }
    }

    fn log(&mut self) -> log::Settings {
        let text = |key| self.settings.text(key).to_owned();
        let flags = LogFlags { log_format: text(path::LOG_FORMAT), verbosity: text(path::VERBOSITY) };
        // What is wrong with these two is reported by their form.
        let mut settings = flags.read(&mut Vec::new());
        match self.settings.text(path::MODULES) {
            "" => {}
            text => match text.parse() {
                Ok(modules) => settings.modules = modules,
                Err(accepted) => self.setting(path::MODULES, accepted),
            },
        }
        settings
    }

    fn done<T>(self, value: Option<T>, source: &str) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems { source: source.to_owned(), list: self.problems }),
        }
    }
}

/// What is known of the host before anything is touched.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: String,
    /// Its processors.
    pub(crate) processors: u64,
    /// A number that differs from start to start.
    pub(crate) seed: u64,
}

impl Config {
    /// Reads the command line and the file that it names, `file`; `tls` is what the TLS files hold.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn read(
        invocation: &Invocation,
        file: Option<&Document>,
        host: &Host,
        tls: TlsMaterial,
    ) -> Result<Self, Problems> {
        let flags = &invocation.flags;
        let (settings, mut notes) = Settings::new(invocation.given.clone(), file, invocation.as_kube_proxy);
        let mut reader = Reader { settings: &settings, problems: Vec::new() };
        reader.problems.extend(file.iter().flat_map(|file| file.problems.clone()));
        let place = reader.place(flags, tls, host.seed);
        reader.forms();
        let (pods, services, local) = (reader.pods(), reader.services(flags), reader.local());
        let (node, scheduler, grace) = (reader.node(&host.name), reader.scheduler(), reader.grace(flags));
        let zone = flags.node_zone.as_deref().map(str::trim).filter(|zone| !zone.is_empty()).map(str::to_owned);
        let timeouts = Timeouts {
            tcp: reader.seconds(path::TCP_TIMEOUT),
            tcp_fin: reader.seconds(path::TCP_FIN_TIMEOUT),
            udp: reader.seconds(path::UDP_TIMEOUT),
        };
        let (mode, places, log) = (reader.mode(), reader.places(flags), reader.log());
        let (parameters, service_metrics) = (reader.parameters(host.processors), reader.service_metrics(flags));
        let known = reader.detection(pods.unwrap_or_default());
        let facts = node::facts(&settings, (node.clone(), zone), known);
        notes.warnings.extend(node::warnings(&settings, &facts));
        notes.warnings.extend(place::warning(&settings, place.as_ref()));
        notes.remarks.extend(node::needless(&settings, &local));
        let config = place.zip(pods).map(|(place, pods)| Self {
            place,
            pods,
            services,
            local,
            node,
            facts,
            mode,
            scheduler,
            excluded: settings.networks(path::EXCLUDED),
            grace,
            service_metrics,
            timeouts,
            places,
            log,
            parameters,
            settings: settings.clone(),
            notes,
        });
        reader.done(config, source(flags))
    }
}

/// What a configuration is read from.
fn source(flags: &Flags) -> &str {
    flags.config.as_deref().unwrap_or(COMMAND_LINE)
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
    let mut reader = Reader { settings: &Settings::default(), problems: Vec::new() };
    if flags.etcd.etcd_endpoints.is_none() {
        reader.flag("etcd-endpoints", "missing".to_owned(), "http://HOST:PORT,... or https://HOST:PORT,...");
        return reader.done(None, COMMAND_LINE);
    }
    let store = reader.store(flags, tls, seed);
    reader.done(store, COMMAND_LINE)
}

#[cfg(test)]
mod tests {
    use netstate::IpFamily;

    use super::super::settings::document;
    use super::*;
    use crate::plan::here;
    use crate::plan::pods::Pods;

    fn host() -> Host {
        Host { name: "HDSS7-21.host.com".to_owned(), processors: 4, seed: 1 }
    }

    pub(super) fn read_with(file: Option<&str>, words: &[&str]) -> Result<Config, Problems> {
        let words = std::iter::once("ipvs-proxy").chain(words.iter().copied());
        let invocation = Invocation::read(words.map(Into::into)).unwrap();
        let file = file.map(document::parse);
        Config::read(&invocation, file.as_ref(), &host(), TlsMaterial::default())
    }

    pub(super) fn read(words: &[&str]) -> Result<Config, Problems> {
        read_with(None, words)
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
        assert_eq!((config.scheduler.name.as_str(), config.grace.as_secs()), ("rr", 900));
        assert_eq!((config.node.as_str(), &config.facts.zone), ("hdss7-21.host.com", &None));
        assert!(matches!(config.place, Place::Etcd(..)));
        assert!(config.parameters.is_empty(), "parameters of the host stay");
        let listeners: Vec<_> = config.places.listeners.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(listeners, ["127.0.0.1:10256", "127.0.0.1:10249"]);
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_flag() {
        assert_eq!(
            fields(&[
                "--etcd-endpoints=ftp://x",
                "--cluster-cidr=172.7.0.0/33",
                "--service-cidr=192.168.0.0/16,10.96.0.0/12",
                "--ipvs-scheduler=R R",
                "--ipvs-graceful-period=15",
                "--service-metrics=some",
                "--ipvs-udp-timeout=500ms",
                "--ipvs-tcp-timeout=soon",
                "--etcd-prefix=/",
                "--metrics-bind-address=here",
                "--log-format=xml",
                "--v=loud",
                "--conntrack-min=-1",
                "--proxy-mode=userspace",
            ]),
            [
                "etcd-endpoints",
                "etcd-prefix",
                "log-format",
                "v",
                "proxy-mode",
                "ipvs-tcp-timeout",
                "cluster-cidr",
                "conntrack-min",
                "service-cidr",
                "ipvs-scheduler",
                "ipvs-graceful-period",
                "ipvs-udp-timeout",
                "metrics-bind-address",
                "service-metrics",
            ]
        );
        assert_eq!(fields(&[]), ["etcd-endpoints"]);
        assert_eq!(fields(&["--services-dir=/x", GOOD[0], GOOD[1]]), ["services-dir"]);
        assert_eq!(fields(&[GOOD[0], "--cluster-cidr=172.7.0.0/16,172.8.0.0/16"]), ["cluster-cidr"]);
    }

    #[test]
    fn one_network_of_a_family_or_of_each_in_whatever_order() {
        let pods = |text: &str| read(&[GOOD[0], &format!("--cluster-cidr={text}")]).unwrap().pods;
        let (v4, v6) = ("172.7.0.0/16".parse().unwrap(), "fd00:7::/48".parse().unwrap());
        assert_eq!(pods("172.7.0.0/16"), PerFamily::new(Some(v4), None));
        assert_eq!(pods("fd00:7::/48"), PerFamily::new(None, Some(v6)));
        for both in ["172.7.0.0/16,fd00:7::/48", "fd00:7::/48,172.7.0.0/16"] {
            assert_eq!(pods(both), PerFamily::new(Some(v4), Some(v6)));
        }
    }

    #[test]
    fn without_a_pod_network_both_families_are_served_and_nobody_is_known_for_a_pod() {
        for words in [&GOOD[..1], &[GOOD[0], "--detect-local-mode=ClusterCIDR", "--cluster-cidr="]] {
            let config = read(words).unwrap();
            assert_eq!(config.facts.pods, PerFamily::new(Some(Pods::Unknown), Some(Pods::Unknown)));
            let warnings = config.notes.warnings.join(" ");
            assert!(warnings.starts_with("--cluster-cidr: empty, so nobody is known for a Pod"), "{warnings}");
        }
        assert_eq!(read(&GOOD).unwrap().facts.pods.get(IpFamily::V6), &None);
    }

    #[test]
    fn pods_are_known_by_their_interface_where_that_is_asked_for() {
        let known = |mode: &str, flag: &str, name: &str| {
            let words = [format!("--detect-local-mode={mode}"), format!("--{flag}={name}")];
            read(&[GOOD[0], GOOD[1], &words[0], &words[1]]).map(|config| config.facts.pods)
        };
        let both = |pods: Pods| PerFamily::new(Some(pods.clone()), Some(pods));
        let (bridge, prefix) = ("pod-bridge-interface", "pod-interface-name-prefix");
        let name = |text: &str| text.parse().unwrap();
        assert_eq!(known("BridgeInterface", bridge, "cbr0").unwrap(), both(Pods::From(name("cbr0"))));
        assert_eq!(known("InterfaceNamePrefix", prefix, "veth").unwrap(), both(Pods::FromAny(name("veth"))));
        let by_node = read(&[GOOD[0], "--detect-local-mode=NodeCIDR"]).unwrap();
        assert_eq!((by_node.facts.pods, by_node.facts.pods_of_node), (both(Pods::Unknown), true));
        assert_eq!(by_node.notes.warnings, [""; 0], "who is a Pod comes with the Node");
        let unused = read(&[GOOD[0], GOOD[1], "--pod-bridge-interface=cbr0"]).unwrap().notes.warnings;
        assert_eq!(unused, ["--pod-bridge-interface: cbr0 has no effect: --detect-local-mode is not BridgeInterface"]);
        for (mode, flag, bad) in [
            ("BridgeInterface", bridge, ""),
            ("BridgeInterface", bridge, "a name of a link"),
            ("InterfaceNamePrefix", prefix, ""),
            ("InterfaceNamePrefix", prefix, "veth*"),
            ("InterfaceNamePrefix", prefix, "fifteen-bytes-x"),
            ("NodeName", prefix, "veth"),
        ] {
            let problems = known(mode, flag, bad).unwrap_err().list;
            let field = if mode == "NodeName" { "detect-local-mode" } else { flag };
            assert_eq!(
                problems.iter().map(|problem| problem.field.as_str()).collect::<Vec<_>>(),
                [format!("--{field}")]
            );
        }
    }

    #[test]
    fn problems_read_as_lines_with_the_flag_in_front() {
        let text = read(&["--services-dir=/x", "--cluster-cidr=0.0.0.0/0"]).unwrap_err().to_string();
        assert_eq!(
            text,
            "command line and environment: 1 problem\n  --cluster-cidr: \"0.0.0.0/0\"; accepted: one network such \
             as 172.7.0.0/16 or fd00:7::/48, or one of each family with a comma between them"
        );
    }

    const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn a_file_says_what_flags_would() {
        let text = format!(
            "{FILE}clusterCIDR: 172.7.0.0/16,fd00::/48\nhostnameOverride: N1\nipvs: {{scheduler: wlc, tcpTimeout: 15m, \
             strictARP: true}}\nmetricsBindAddress: 127.0.0.2\nlogging: {{verbosity: 2}}\n\
             conntrack: {{maxPerCore: 100, min: 50, udpTimeout: 10s, tcpBeLiberal: true}}\n"
        );
        let config = read_with(Some(&text), &["--services-dir=/x"]).unwrap();
        let pods: Vec<_> = config.pods.present().map(|(_, network)| network.to_string()).collect();
        assert_eq!((pods.join(" ").as_str(), config.node.as_str()), ("172.7.0.0/16 fd00::/48", "n1"));
        assert_eq!((config.scheduler.name.as_str(), config.timeouts.tcp, config.log.verbosity), ("wlc", 900, 2));
        let listeners: Vec<_> = config.places.listeners.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(listeners, ["0.0.0.0:10256", "127.0.0.2:10249"]);
        let parameters: Vec<_> = config.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            parameters,
            [
                "net/ipv4/conf/all/arp_announce=2",
                "net/ipv4/conf/all/arp_ignore=1",
                "net/netfilter/nf_conntrack_max=400",
                "net/netfilter/nf_conntrack_tcp_be_liberal=1",
                "net/netfilter/nf_conntrack_tcp_timeout_close_wait=3600",
                "net/netfilter/nf_conntrack_tcp_timeout_established=86400",
                "net/netfilter/nf_conntrack_udp_timeout=10",
            ]
        );
        assert!(config.notes.warnings.is_empty(), "{:?}", config.notes.warnings);
    }

    #[test]
    fn what_is_said_of_this_node_is_read_for_each_data_path() {
        let both = [here::Mode::Ipvs, here::Mode::Nftables];
        let words = [&GOOD[..], &["--masquerade-all", "--nodeport-addresses=primary"]].concat();
        let facts = read(&words).unwrap().facts;
        assert_eq!((&facts.masquerade_all[..], facts.node_ports), (&both[..], here::NodePorts::Primary));
        let masqueraded = |text: &str| {
            let text = format!("{FILE}clusterCIDR: 172.7.0.0/16\n{text}\n");
            read_with(Some(&text), &["--services-dir=/x"]).unwrap().facts.masquerade_all
        };
        assert_eq!(masqueraded("iptables: {masqueradeAll: true}"), [here::Mode::Ipvs]);
        assert_eq!(masqueraded("nftables: {masqueradeAll: true}"), [here::Mode::Nftables]);
        let bind = |addr: &str| read(&[GOOD[0], GOOD[1], &format!("--bind-address={addr}")]).unwrap().facts.bind;
        assert_eq!((bind("0.0.0.0"), bind("10.4.7.21")), (None, Some([10, 4, 7, 21].into())));
        let warned = read(&[&GOOD[..], &["--nodeport-addresses=127.0.0.0/8,10.4.7.0/24"]].concat()).unwrap().notes;
        assert_eq!(
            warned.warnings,
            ["--nodeport-addresses: 127.0.0.0/8 has no effect: there are no NodePorts at loopback"]
        );
    }

    #[test]
    fn problems_of_a_file_stand_beside_those_of_the_command_line() {
        let text = format!("{FILE}ipvs: {{tcpTimeout: 900, scheduler: R R}}\nclusterCIDR: pods\n");
        let problems = read_with(Some(&text), &["--config=/etc/kube-proxy.yaml"]).unwrap_err();
        assert_eq!(problems.source, "/etc/kube-proxy.yaml");
        let fields: Vec<_> = problems.list.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["ipvs.tcpTimeout", "--etcd-endpoints", "clusterCIDR", "ipvs.scheduler"]);
    }

    #[test]
    fn networks_that_are_to_be_local_are_those_of_services() {
        let flags = [&GOOD[..], &["--ipvs-local-cidrs=10.96.0.0/12,fd00:9::/108", "--ipvs-local-cidrs=192.168.0.0/16"]];
        let config = read(&flags.concat()).unwrap();
        let networks: Vec<_> = config.local.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.96.0.0/12", "fd00:9::/108", "192.168.0.0/16"]);
        assert!(config.notes.remarks.is_empty(), "{:?}", config.notes.remarks);
        let text = format!("{FILE}clusterCIDR: 172.7.0.0/16\nmode: nftables\nipvs: {{localCIDRs: [10.96.0.0/12]}}\n");
        let notes = read_with(Some(&text), &["--services-dir=/x"]).unwrap().notes;
        assert_eq!(notes.remarks, ["ipvs.localCIDRs changes nothing with nftables, for which no address is local"]);
        for bad in ["0.0.0.0/0", "10.0.0.0/7", "127.0.0.0/8", "fd00::/40", "services"] {
            let problems = read(&[&GOOD[..], &[&format!("--ipvs-local-cidrs={bad}")]].concat()).unwrap_err().list;
            let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
            assert_eq!(fields, ["--ipvs-local-cidrs"], "{bad}");
        }
        let written = read(&GOOD).unwrap().settings.write().unwrap();
        assert!(!written.contains("localCIDRs"), "kube-proxy has no such field");
        assert!(config.settings.write().unwrap().contains("localCIDRs"));
    }

    #[test]
    fn deprecated_ports_count_where_the_address_has_none() {
        let flags = ["--healthz-bind-address=10.4.7.21", "--healthz-port=80", "--metrics-port=0"];
        let config = read(&[&GOOD[..], &flags[..]].concat()).unwrap();
        let listeners: Vec<_> = config.places.listeners.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(listeners, ["10.4.7.21:80"]);
    }
}
