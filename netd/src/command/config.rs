//! What the command line means.
//!
//! Pure: what files hold and what is random come as arguments. Invariant: a `Config` is complete and consistent; every problem of the flags is reported at once, with the flag's name
//! and the accepted form. The password is in no message and no `Debug`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cluster::etcd::{self, TlsMaterial};
use daemon::flags::bind_address;
use daemon::http::{Address, Routes};
use daemon::log;
use netstate::Prefix;
use netstate::family::PerFamily;
use regex::Regex;

use crate::choose::interface::{Wanted, no_host};
use crate::choose::policy::Policy;
use crate::command::args::{Flags, Kube, Unbuilt};
use crate::command::go;
use crate::command::instance::Instance;
use crate::command::page;
use crate::format::node::AnnotationPrefix;
use crate::plan::Masquerade;
use crate::source::kubernetes::{self, NodeName};
use cluster::kubernetes::Access;
use cluster::{Problem, Problems};

/// Where flags come from.
const INPUT: &str = "command line and environment";

/// Time to live of a lease in minutes: flannel's 24 hours.
const LEASE_MINUTES: u32 = 24 * 60;

/// What grants the rights of the source of Nodes.
const GRANTS: &str = "the ClusterRole of configs/kubernetes/netd";

/// Port of the address for metrics when it has none.
const METRICS_PORT: u16 = 10247;

/// The accepted forms of `--public-ip` and `--public-ipv6`.
const V4_FORM: &str = "an IPv4 address such as 10.4.7.21";
const V6_FORM: &str = "an IPv6 address such as fd00:10:4:7::21";

/// The default folder of run-time files.
pub(crate) const RUN_DIR: &str = "/run/netd";

/// The default file of this node's WireGuard key.
pub(crate) const WIREGUARD_KEY_FILE: &str = "/var/lib/netd/wgkey";

/// Everything the command line says.
#[derive(Debug)]
pub(crate) struct Config {
    /// Where the network's configuration and the leases are.
    pub store: Store,
    /// Which interface leads to the other nodes.
    pub interface: Wanted,
    /// How a subnet is chosen, whatever the network's configuration says.
    pub policies: Option<Vec<Policy>>,
    /// Which rules are wanted.
    pub masquerade: Masquerade,
    /// Service networks, for the check of the plan only.
    pub services: Vec<Prefix>,
    /// Which of this host's networks is served.
    pub instance: Instance,
    /// The subnet file.
    pub subnet_file: PathBuf,
    /// Folder of run-time files.
    pub run_dir: PathBuf,
    /// File of this node's WireGuard key.
    pub wireguard_key_file: PathBuf,
    /// Where HTTP is served, beside the socket in that folder.
    pub listeners: Vec<(Address, Routes)>,
    /// Who sees the page, and what it shows.
    pub page: page::Wanted,
    /// UDP port at which probes are answered; 0 for none.
    pub probe_port: u16,
    /// Form and detail of the log.
    pub log: log::Settings,
}

/// Where the network's configuration and the leases are.
#[derive(Debug)]
pub(crate) enum Store {
    /// etcd.
    Etcd {
        /// Reaches it.
        client: etcd::Client,
        /// Folder of the network's keys.
        prefix: etcd::Prefix,
        /// Seconds before its end at which the lease is renewed at the latest.
        renew_margin: u32,
    },
    /// Nodes of Kubernetes, and a file.
    Kubernetes {
        /// How its API server is reached.
        access: Access,
        /// What is read and written there.
        settings: kubernetes::Settings,
    },
    /// A file; this machine is the whole cluster.
    Local {
        /// The file.
        net_conf: PathBuf,
    },
}

impl Config {
    /// Reads the flags. `tls` is what the TLS files hold; `seed` spreads the nodes of a cluster over etcd's members.
    ///
    /// # Errors
    /// Every problem of every flag.
    pub(crate) fn read(flags: &Flags, tls: TlsMaterial, seed: u64) -> Result<Self, Problems> {
        let mut problems = check_unbuilt(&flags.unbuilt);
        let store = store(flags, tls, seed, &mut problems);
        let interface = interface(flags, &mut problems);
        let policies = given(&flags.lease_policy).map(|text| policies(&text, &mut problems));
        let subnet_file = path("--subnet-file", &flags.subnet_file, &mut problems);
        let instance = Instance::of(&subnet_file);
        let masquerade = Masquerade {
            table: instance.table(),
            masquerade: boolean("--ip-masq", &flags.ip_masq, &mut problems),
            fully_random: !boolean(
                "--ip-masq-fully-random-disable",
                &flags.ip_masq_fully_random_disable,
                &mut problems,
            ),
            forward: boolean("--iptables-forward-rules", &flags.iptables_forward_rules, &mut problems),
            blackhole: boolean("--ip-blackhole-route", &flags.ip_blackhole_route, &mut problems),
            untracked: boolean("--untracked-tunnel", &flags.untracked_tunnel, &mut problems),
        };
        let services = services(&flags.service_cidr, &mut problems);
        path("--run-dir", flags.run.run_dir.as_deref().unwrap_or_default(), &mut problems);
        let run_dir = run_dir(flags);
        let wireguard_key_file = path("--wireguard-key-file", &flags.wireguard_key_file, &mut problems);
        let listeners = listeners(flags, &mut problems);
        let page = page(flags, &run_dir, &mut problems);
        let probe_port = port("--probe-port", &flags.probe_port, &mut problems);
        let log = log(flags, &mut problems);
        match store {
            Some(store) if problems.is_empty() => Ok(Self {
                store,
                interface,
                policies,
                masquerade,
                services,
                instance,
                subnet_file,
                run_dir,
                wireguard_key_file,
                listeners,
                page,
                probe_port,
                log,
            }),
            _ => Err(Problems { source: INPUT.to_owned(), list: problems }),
        }
    }
}

/// The port of the nodes' probes, for verbs; `None` where they have none.
///
/// # Errors
/// When it is no port.
pub(crate) fn probe_port(flags: &Flags) -> Result<Option<u16>, Problems> {
    let mut list = Vec::new();
    let port = port("--probe-port", &flags.probe_port, &mut list);
    if list.is_empty() {
        Ok(Some(port).filter(|port| *port != 0))
    } else {
        Err(Problems { source: INPUT.to_owned(), list })
    }
}

/// The folder of run-time files: with the default one, each further network of this host has its own below it.
#[must_use]
pub(crate) fn run_dir(flags: &Flags) -> PathBuf {
    let folder = PathBuf::from(flags.run.run_dir.as_deref().unwrap_or_default());
    if folder == Path::new(RUN_DIR) { Instance::of(Path::new(&flags.subnet_file)).folder(&folder) } else { folder }
}

fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

fn store(flags: &Flags, tls: TlsMaterial, seed: u64, problems: &mut Vec<Problem>) -> Option<Store> {
    let by_nodes = boolean("--kube-subnet-mgr", &flags.kube.kube_subnet_mgr, problems);
    match (flags.store.as_str(), by_nodes) {
        ("etcd", true) | ("kubernetes", _) => kubernetes_store(flags, problems),
        ("etcd", false) => etcd_store(flags, tls, seed, problems),
        ("local", false) => {
            Some(Store::Local { net_conf: path("--net-config-path", &flags.net_config_path, problems) })
        }
        ("local", true) => {
            problems.push(Problem::new("--store", "\"local\" beside --kube-subnet-mgr", "one of the two"));
            None
        }
        (other, _) => {
            problems.push(Problem::new("--store", format!("{other:?} is no store"), "etcd, kubernetes or local"));
            None
        }
    }
}

fn kubernetes_store(flags: &Flags, problems: &mut Vec<Problem>) -> Option<Store> {
    let Kube { kubeconfig_file, kube_api_url, kube_annotation_prefix, set_node_network_unavailable, .. } = &flags.kube;
    let agent = format!("netd/{}", env!("CARGO_PKG_VERSION"));
    let access = Access::new(kubeconfig_file.as_deref(), kube_api_url.as_deref(), &agent, GRANTS);
    let net_conf = path("--net-config-path", &flags.net_config_path, problems);
    let accepted = AnnotationPrefix::ACCEPTED;
    let prefix = parsed("--kube-annotation-prefix", kube_annotation_prefix, accepted, problems);
    let condition = boolean("--set-node-network-unavailable", set_node_network_unavailable, problems);
    let node = node_name(&flags.kube, problems);
    Some(Store::Kubernetes {
        access,
        settings: kubernetes::Settings { net_conf, prefix: prefix?, node: node?, condition },
    })
}

/// As flannel finds it: by its name, or by the Pod that this runs in.
fn node_name(kube: &Kube, problems: &mut Vec<Problem>) -> Option<NodeName> {
    if let Some(name) = given(&kube.node_name) {
        return Some(NodeName::Named(name));
    }
    let pod = given(&kube.pod_namespace).zip(given(&kube.pod_name));
    if pod.is_none() {
        let accepted = "the Node's name in --node-name or NODE_NAME, or the Pod's in POD_NAME and POD_NAMESPACE (downward API: spec.nodeName)";
        problems.push(Problem::new("NODE_NAME", "nothing says which Node is this one", accepted));
    }
    pod.map(|(namespace, name)| NodeName::OfPod { namespace, name })
}

fn etcd_store(flags: &Flags, tls: TlsMaterial, seed: u64, problems: &mut Vec<Problem>) -> Option<Store> {
    let mut refuse = |found: Vec<Problem>| problems.extend(found.into_iter().map(|problem| problem.under("--")));
    let client = etcd::Client::new(&flags.etcd.client_config(tls), seed).map_err(&mut refuse).ok();
    let prefix = etcd::Prefix::parse("etcd-prefix", flags.etcd.etcd_prefix.as_deref().unwrap_or_default());
    let prefix = prefix.map_err(|problem| refuse(vec![problem])).ok();
    let renew_margin = renew_margin(&flags.subnet_lease_renew_margin, problems);
    Some(Store::Etcd { client: client?, prefix: prefix?, renew_margin: renew_margin? })
}

fn renew_margin(text: &str, problems: &mut Vec<Problem>) -> Option<u32> {
    let minutes = go::integer(text).and_then(|minutes| u32::try_from(minutes).ok());
    let minutes = minutes.filter(|minutes| (1..LEASE_MINUTES).contains(minutes));
    if minutes.is_none() {
        problems.push(Problem::new("--subnet-lease-renew-margin", format!("{text:?}"), "minutes from 1 to 1439"));
    }
    minutes.map(|minutes| minutes * 60)
}

fn interface(flags: &Flags, problems: &mut Vec<Problem>) -> Wanted {
    let typed = |texts: &[String]| texts.iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>();
    let mut regexes = Vec::new();
    for text in typed(&flags.iface_regex) {
        match Regex::new(&text) {
            Ok(regex) => regexes.push(regex),
            Err(error) => problems.push(Problem::new("--iface-regex", error.to_string(), "a regular expression")),
        }
    }
    let mut address = |flag: &str, text: &Option<String>| -> Option<IpAddr> {
        parsed(flag, &given(text)?, "an address such as 10.4.7.21", problems)
    };
    let can_reach = address("--iface-can-reach", &flags.iface_can_reach);
    let public_ips = public_ips(flags, problems);
    Wanted { ifaces: typed(&flags.iface), regexes, can_reach, public_ips }
}

fn public_ips(flags: &Flags, problems: &mut Vec<Problem>) -> PerFamily<Option<IpAddr>> {
    let v4 = given(&flags.public_ip).and_then(|text| public_ip::<Ipv4Addr>("--public-ip", &text, V4_FORM, problems));
    let v6 =
        given(&flags.public_ipv6).and_then(|text| public_ip::<Ipv6Addr>("--public-ipv6", &text, V6_FORM, problems));
    PerFamily::new(v4, v6)
}

/// An address that the lease may name: with that of no host the other nodes leave it out.
fn public_ip<A: FromStr + Into<IpAddr>>(
    flag: &str,
    text: &str,
    accepted: &str,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let addr = parsed::<A>(flag, text, accepted, problems)?.into();
    let Some(reason) = no_host(addr) else { return Some(addr) };
    problems.push(Problem::new(flag, format!("{addr} {reason}"), accepted));
    None
}

fn policies(text: &str, problems: &mut Vec<Problem>) -> Vec<Policy> {
    let refuse = |found: String| problems.push(Problem::new("--lease-policy", found, Policy::ACCEPTED));
    Policy::parse_list(text).map_err(|found| found.into_iter().for_each(refuse)).unwrap_or_default()
}

fn services(texts: &[String], problems: &mut Vec<Problem>) -> Vec<Prefix> {
    let items = texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|item| !item.is_empty());
    items.filter_map(|item| parsed("--service-cidr", item, "a network such as 192.168.0.0/16", problems)).collect()
}

fn parsed<T: FromStr>(flag: &str, text: &str, accepted: &str, problems: &mut Vec<Problem>) -> Option<T> {
    let value = text.parse().ok();
    if value.is_none() {
        problems.push(Problem::new(flag, format!("{text:?}"), accepted));
    }
    value
}

fn boolean(flag: &str, text: &str, problems: &mut Vec<Problem>) -> bool {
    let value = go::boolean(text);
    if value.is_none() {
        problems.push(Problem::new(flag, format!("{text:?}"), "true or false"));
    }
    value.unwrap_or_default()
}

fn path(flag: &str, text: &str, problems: &mut Vec<Problem>) -> PathBuf {
    if text.is_empty() {
        problems.push(Problem::new(flag, "empty", "a path"));
    }
    PathBuf::from(text)
}

fn log(flags: &Flags, problems: &mut Vec<Problem>) -> log::Settings {
    let mut found = Vec::new();
    let mut settings = flags.log.read(&mut found);
    flags.glog.read(&mut settings, &mut found);
    problems.extend(found.into_iter().map(|problem| problem.under("--")));
    settings
}

fn port(flag: &str, text: &str, problems: &mut Vec<Problem>) -> u16 {
    let port = go::integer(text).and_then(|port| u16::try_from(port).ok());
    if port.is_none() {
        problems.push(Problem::new(flag, format!("{text:?}"), "a port from 1 to 65535, or 0 for none"));
    }
    port.unwrap_or_default()
}

fn listeners(flags: &Flags, problems: &mut Vec<Problem>) -> Vec<(Address, Routes)> {
    let mut listeners = Vec::new();
    let ip = parsed::<IpAddr>("--healthz-ip", &flags.healthz_ip, "an address such as 127.0.0.1", problems);
    let port = port("--healthz-port", &flags.healthz_port, problems);
    if let (Some(ip), port @ 1..) = (ip, port) {
        listeners.push((Address::Tcp(SocketAddr::new(ip, port)), Routes::Health));
    }
    match bind_address("--metrics-bind-address", &flags.metrics_bind_address, METRICS_PORT) {
        Ok(address) => listeners.extend(address.map(|address| (Address::Tcp(address), Routes::All))),
        Err(problem) => problems.push(problem),
    }
    listeners
}

fn page(flags: &Flags, run_dir: &Path, problems: &mut Vec<Problem>) -> page::Wanted {
    let shown = page::Shown::of(&flags.page).unwrap_or_else(|problem| {
        problems.push(problem);
        page::Shown::Off
    });
    let proxy_dir = path("--proxy-run-dir", &flags.proxy_run_dir, problems);
    page::Wanted { shown, run_dir: run_dir.to_owned(), proxy_dir }
}

/// What is wrong with flags of flannel that change nothing here: rules are put back on notification.
fn check_unbuilt(unbuilt: &Unbuilt) -> Vec<Problem> {
    let text = given(&unbuilt.iptables_resync).filter(|text| go::integer(text).is_none());
    let problem = |text| Problem::new("--iptables-resync", format!("{text:?}"), "a number of seconds");
    text.map(problem).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::args::Invocation;
    use std::ffi::OsString;

    fn read(args: &[&str]) -> Result<Config, Problems> {
        let args = std::iter::once("netd").chain(args.iter().copied()).map(OsString::from);
        Config::read(&Invocation::read(args, |_| None).unwrap().flags, TlsMaterial::default(), 1)
    }

    #[test]
    fn defaults_are_flannels() {
        let config = read(&[]).unwrap();
        match config.store {
            Store::Etcd { prefix, renew_margin, .. } => {
                assert_eq!((prefix.key("config").as_str(), renew_margin), ("/coreos.com/network/config", 3600));
            }
            other => panic!("etcd is the default, not {other:?}"),
        }
        assert_eq!(config.policies, None);
        assert_eq!(config.masquerade, Masquerade { masquerade: false, ..Masquerade::MASQ });
        assert_eq!(config.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
        assert_eq!(config.log, log::Settings::default());
        let loopback = Address::Tcp("127.0.0.1:10247".parse().unwrap());
        assert_eq!(config.listeners, [(loopback, Routes::All)], "health checks are off");
    }

    #[test]
    fn verbs_take_the_port_of_probes_as_the_daemon_does() {
        let port = |text: &str| {
            let args = ["netd", text].map(OsString::from);
            probe_port(&Invocation::read(args, |_| None).unwrap().flags).map_err(|error| error.to_string())
        };
        assert_eq!(port("--probe-port=10300"), Ok(Some(10_300)));
        assert_eq!(port("--probe-port=0"), Ok(None));
        assert!(port("--probe-port=99999").unwrap_err().contains("--probe-port"));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_flag() {
        let error = read(&[
            "--etcd-endpoints=ftp://x",
            "--etcd-prefix=/",
            "--etcd-password=s3cret",
            "--subnet-lease-renew-margin=1440",
            "--iface-regex=(",
            "--public-ip=10.4.7",
            "--ip-masq=maybe",
            "--lease-policy=node-ip,fastest,node-ip",
            "--service-cidr=192.168.0.0",
            "--log-format=xml",
            "--v=loud",
            "--kube-subnet-mgr=perhaps",
            "--healthz-port=http",
            "--iptables-resync=often",
            "--vmodule=worker",
            "--metrics-bind-address=here",
        ])
        .unwrap_err()
        .to_string();
        for flag in [
            "--etcd-endpoints: ",
            "--etcd-prefix: ",
            "--etcd-username: ",
            "--subnet-lease-renew-margin: \"1440\"; accepted: minutes from 1 to 1439",
            "--iface-regex: ",
            "--public-ip: ",
            "--ip-masq: \"maybe\"",
            "--lease-policy: \"fastest\" is no policy",
            "--lease-policy: \"node-ip\" stands there twice",
            "--service-cidr: ",
            "--log-format: ",
            "--v: ",
            "--kube-subnet-mgr: \"perhaps\"",
            "--healthz-port: \"http\"",
            "--iptables-resync: \"often\"",
            "--vmodule: \"worker\"",
            "--metrics-bind-address: \"here\"",
        ] {
            assert!(error.contains(&format!("\n  {flag}")), "{error}\nlacks {flag}");
        }
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn an_address_of_no_host_is_none_for_other_nodes() {
        for (flag, reason) in [
            ("--public-ip=127.0.0.1", "--public-ip: 127.0.0.1 is not the address of a host"),
            ("--public-ip=0.0.0.0", "--public-ip: 0.0.0.0 is not the address of a host"),
            ("--public-ipv6=ff02::1", "--public-ipv6: ff02::1 is not the address of a host"),
            ("--public-ipv6=fe80::21", "--public-ipv6: fe80::21 is an address of one link only"),
            ("--public-ipv6=::ffff:10.4.7.21", "is an IPv4 address in the form of IPv6"),
        ] {
            let error = read(&[flag]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn health_checks_are_served_where_flannels_flags_say() {
        let config = read(&["--healthz-port=8081", "--metrics-bind-address="]).unwrap();
        assert_eq!(config.listeners, [(Address::Tcp("0.0.0.0:8081".parse().unwrap()), Routes::Health)]);
        let config = read(&["--healthz-ip=::1", "--healthz-port=8081", "--metrics-bind-address="]).unwrap();
        assert_eq!(config.listeners, [(Address::Tcp("[::1]:8081".parse().unwrap()), Routes::Health)]);
    }

    #[test]
    fn password_is_not_in_the_debug_text() {
        let config = read(&["--etcd-username=root", "--etcd-password=s3cret"]).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn flags_of_flannel_that_say_what_happens_anyway_are_accepted() {
        let config = read(&[
            "--kube-subnet-mgr=f",
            "--subnet-lease-renew-margin=0x1e",
            "-stderrthreshold=INFO",
            "-alsologtostderr",
            "-iptables-resync=5",
            "--healthz-port=0",
            "--set-node-network-unavailable=true",
        ])
        .unwrap();
        assert!(matches!(config.store, Store::Etcd { renew_margin: 1800, .. }));
    }

    #[test]
    fn single_machine_needs_no_etcd() {
        let config = read(&["--store=local", "--net-config-path=/etc/net-conf.json", "--etcd-endpoints="]).unwrap();
        assert!(matches!(config.store, Store::Local { net_conf } if net_conf.to_str() == Some("/etc/net-conf.json")));
        let error = read(&["--store=disk"]).unwrap_err().to_string();
        assert!(error.contains("--store: \"disk\" is no store; accepted: etcd, kubernetes or local"), "{error}");
        assert!(
            read(&["--store=local", "--kube-subnet-mgr"]).unwrap_err().to_string().contains("beside --kube-subnet-mgr")
        );
    }

    #[test]
    fn nodes_are_the_leases_as_flannels_flags_say() {
        let settings = |args: &[&str]| match read(args).unwrap().store {
            Store::Kubernetes { access, settings } => (access, settings),
            other => panic!("{args:?}: {other:?}"),
        };
        let (access, own) = settings(&["-kube-subnet-mgr", "--node-name=n1"]);
        assert!(access.is_in_cluster() && own.condition);
        assert_eq!(own.net_conf.to_str(), Some("/etc/kube-flannel/net-conf.json"));
        assert_eq!(
            (own.prefix.to_string().as_str(), own.node),
            ("flannel.alpha.coreos.com/", NodeName::Named("n1".to_owned()))
        );
        let (access, own) = settings(&[
            "--store=kubernetes",
            "--pod-name=netd-x",
            "--pod-namespace=kube-system",
            "--kubeconfig-file=/k",
            "--kube-api-url=https://10.4.7.10:7443",
            "--kube-annotation-prefix=org.com/9",
            "--set-node-network-unavailable=false",
        ]);
        assert_eq!(access.kubeconfig.as_deref().and_then(Path::to_str), Some("/k"));
        assert_eq!(access.server.as_deref(), Some("https://10.4.7.10:7443"));
        assert_eq!((own.prefix.to_string().as_str(), own.condition), ("org.com/9-", false));
        let (namespace, name) = ("kube-system".to_owned(), "netd-x".to_owned());
        assert_eq!(own.node, NodeName::OfPod { namespace, name });
        let error = read(&["--kube-subnet-mgr", "--kube-annotation-prefix=ORG"]).unwrap_err().to_string();
        assert!(error.contains("--kube-annotation-prefix: \"ORG\"") && error.contains("NODE_NAME: "), "{error}");
    }
}
