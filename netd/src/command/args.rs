//! The command line and the environment: what was typed, nothing of what it means.
//!
//! Invariant: every value is text here; `config` reads all of it and reports every problem at once. Flags are Go's: one
//! dash or two, `--flag=value` or `--flag value`, switches with or without `=true`, the last one wins. Each flag of
//! flannel can come from `FLANNELD_<NAME>` when it is not on the command line, the others from `NETD_<NAME>`; an empty
//! variable is none. Variables of older service files stand in front of the command line, as their wrapper put them.

use std::ffi::OsString;

use clap::{ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser};
use daemon::flags::{self, EtcdFlags, GlogFlags, LogFlags, RunFlags};

use super::go::{self, Known, Role};
use super::verbs::Verb;

/// The node's network daemon: leases a Pod subnet and keeps routes, tunnels and rules equal to the leases.
#[derive(Parser)]
#[command(name = "netd", version, args_override_self = true, max_term_width = 110)]
pub(crate) struct Invocation {
    /// What to do; without a word: run the daemon.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Flags of the daemon.
    #[command(flatten)]
    pub flags: Flags,
    /// Words behind the flags of flanneld, which ignores them.
    #[arg(skip)]
    pub ignored: Vec<OsString>,
}

/// Flags of the daemon.
#[derive(Args, Default)]
pub(crate) struct Flags {
    /// Where leases are kept: `etcd`, `kubernetes`, or `local` for a single machine that needs no store.
    #[arg(long, global = true, env = "NETD_STORE", value_name = "NAME", default_value = "etcd")]
    pub store: String,
    /// Where etcd is.
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Interface towards the other nodes, by name or address; repeat it for alternatives.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP")]
    pub iface: Vec<String>,
    /// The same by regular expression, tried on addresses first, then on names.
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    pub iface_regex: Vec<String>,
    /// The interface whose route leads to this address.
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "IP")]
    pub iface_can_reach: Option<String>,
    /// Address under which the other nodes reach this one.
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<String>,
    /// The same of IPv6.
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", value_name = "IP")]
    pub public_ipv6: Option<String>,
    /// File that names this node's subnet to the CNI plugin.
    #[arg(long, global = true, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = netstate::subnet_file::DEFAULT_PATH)]
    pub subnet_file: String,
    /// Minutes before its end at which the lease is renewed at the latest, 1 to 1439.
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", value_name = "MINUTES", default_value = "60")]
    pub subnet_lease_renew_margin: String,
    /// Masquerade what Pods send to the outside.
    #[arg(long, env = "FLANNELD_IP_MASQ", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ip_masq: String,
    /// Do not choose source ports at random when masquerading.
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ip_masq_fully_random_disable: String,
    /// Accept forwarded packets of the Pod network in chains of the host that deny them (nftables, whatever the flag's name).
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub iptables_forward_rules: String,
    /// Drop what is sent to addresses of this node's subnet that no Pod has, by a route behind those of the Pods.
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ip_blackhole_route: String,
    /// Keep the tunnel's own packets out of the tracking of connections, from the interface on; the host's firewall must then accept them
    /// without a state, or as untracked (docs/data-path.md).
    #[arg(long, env = "NETD_UNTRACKED_TUNNEL", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub untracked_tunnel: String,
    /// Nodes of Kubernetes as leases.
    #[command(flatten)]
    pub kube: Kube,
    /// File with the network's configuration, for `--kube-subnet-mgr` and `--store=local`.
    #[arg(
        long,
        global = true,
        env = "FLANNELD_NET_CONFIG_PATH",
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    pub net_config_path: String,
    /// How a subnet is chosen, in order: `previous`, `node-ip`, `first-free`, `random`; without it as `SubnetAssignment`
    /// of the network's configuration says, else `previous,node-ip,first-free`.
    #[arg(long, env = "NETD_LEASE_POLICY", value_name = "NAME,...")]
    pub lease_policy: Option<String>,
    /// Service networks of the cluster, only to refuse a plan in which networks overlap.
    #[arg(long, env = "NETD_SERVICE_CIDR", value_name = "NETWORK,...")]
    pub service_cidr: Vec<String>,
    /// Address for health checks, if a port is given.
    #[arg(long, env = "FLANNELD_HEALTHZ_IP", value_name = "IP", default_value = "0.0.0.0")]
    pub healthz_ip: String,
    /// Port for health checks, `/healthz` and `/readyz`; 0 serves none.
    #[arg(long, env = "FLANNELD_HEALTHZ_PORT", value_name = "PORT", default_value = "0")]
    pub healthz_port: String,
    /// Address for metrics, status and tables, `ADDRESS:PORT`; an empty one serves none.
    #[arg(long, env = "NETD_METRICS_BIND_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:10247")]
    pub metrics_bind_address: String,
    /// Who sees the page at the address for metrics: `loopback`, whoever is on this host; `network`, whoever reaches that address; `off`, nobody.
    #[arg(long, env = "NETD_PAGE", value_name = "WHO", default_value = "loopback")]
    pub page: String,
    /// Folder of run-time files of `ipvs-proxy` on this host, whose Services the page shows.
    #[arg(long, env = "NETD_PROXY_RUN_DIR", value_name = "FOLDER", default_value = "/run/ipvs-proxy")]
    pub proxy_run_dir: String,
    /// File of this node's key for the backend `wireguard`, made when it is missing; on a disk, so that it outlives a reboot.
    #[arg(long, env = "WIREGUARD_KEY_FILE", value_name = "FILE", default_value = super::config::WIREGUARD_KEY_FILE)]
    pub wireguard_key_file: String,
    /// UDP port at which probes of other nodes' `doctor` and `trace` are answered, and which its own probes go to; 0 answers none.
    #[arg(long, global = true, env = "NETD_PROBE_PORT", value_name = "PORT", default_value = "10247")]
    pub probe_port: String,
    /// Folder of run-time files.
    #[command(flatten)]
    pub run: RunFlags,
    /// Form and detail of the log.
    #[command(flatten)]
    pub log: LogFlags,
    /// More of it, as glog's users know it.
    #[command(flatten)]
    pub glog: GlogFlags,
    /// Flags of flannel that this program has no use for.
    #[command(flatten)]
    pub unbuilt: Unbuilt,
}

/// How Kubernetes is reached, and which Node is this one.
#[derive(Args, Default)]
pub(crate) struct Kube {
    /// Lease by podCIDR and annotations of Nodes, as `--store=kubernetes` does.
    #[arg(long, global = true, env = "FLANNELD_KUBE_SUBNET_MGR", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub kube_subnet_mgr: String,
    /// Kubernetes API server; without it and `--kubeconfig-file` that of the Pod's service account.
    #[arg(long, env = "FLANNELD_KUBE_API_URL", value_name = "URL")]
    pub kube_api_url: Option<String>,
    /// File with addresses and credentials of the API server; its current context counts.
    #[arg(long, env = "FLANNELD_KUBECONFIG_FILE", value_name = "FILE")]
    pub kubeconfig_file: Option<String>,
    /// What stands before the names of annotations.
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", value_name = "PREFIX", default_value = crate::format::node::DEFAULT_PREFIX)]
    pub kube_annotation_prefix: String,
    /// Say in the Node's condition NetworkUnavailable whether its network is there.
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub set_node_network_unavailable: String,
    /// Name of this machine's Node; without it the Node of the Pod POD_NAMESPACE/POD_NAME.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Name of the Pod that this runs in.
    #[arg(long, env = "POD_NAME", value_name = "NAME", hide = true)]
    pub pod_name: Option<String>,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", hide = true)]
    pub pod_namespace: Option<String>,
}

/// Flags of flannel that have no meaning here: accepted where they say what happens anyway.
#[derive(Args, Default)]
pub(crate) struct Unbuilt {
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", hide = true)]
    pub(crate) iptables_resync: Option<String>,
}

impl Invocation {
    /// Reads a command line, program name first, and the environment.
    ///
    /// # Errors
    /// When a flag is unknown or lacks its value; also for `--help` and `--version`, whose text it carries.
    pub(crate) fn read(
        args: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, clap::Error> {
        let mut command = flags::without_empty_variables(command());
        let known = known(&command);
        let mut args = args.into_iter();
        let program = args.next().unwrap_or_default();
        let role = Role::of(program.to_str().unwrap_or_default());
        let older = if role == Role::DockerOpts { Vec::new() } else { go::older_arguments(variable) };
        let typed: Vec<OsString> = older.into_iter().map(OsString::from).chain(args).collect();
        let (typed, ignored) = match role {
            Role::Flanneld => go::split_at_word(typed, &known),
            Role::Netd | Role::DockerOpts => (typed, Vec::new()),
        };
        // The script knows one file but for its -f, whatever netd's environment says.
        let script = ["docker-opts", "--subnet-file", netstate::subnet_file::DEFAULT_PATH];
        let verb = script.into_iter().filter(|_| role == Role::DockerOpts).map(OsString::from);
        let typed = typed.into_iter().map(|arg| go::two_dashes(arg, &known));
        let args = [program].into_iter().chain(verb).chain(typed);
        let matches = command.try_get_matches_from_mut(args)?;
        let ignored = ignored.into_iter().filter(|word| !word.is_empty()).collect();
        Ok(Self { ignored, ..Self::from_arg_matches(&matches)? })
    }
}

/// The flags of the daemon, for Go's way of writing them.
fn known(command: &Command) -> Vec<Known> {
    let known = |arg: &clap::Arg| {
        let takes_word = arg.get_action().takes_values() && !arg.is_require_equals_set();
        Some(Known { name: arg.get_long()?.to_owned(), takes_word })
    };
    command.get_arguments().filter(|arg| !matches!(arg.get_action(), ArgAction::Help)).filter_map(known).collect()
}

/// The command line with all verbs and flags.
pub(crate) fn command() -> Command {
    let command = flags::environment(Invocation::command(), "FLANNELD", &EtcdFlags::NAMES);
    let command = flags::environment(command, "FLANNELD", &["verbosity"]);
    let command = flags::environment(command, "FLANNELD", &GlogFlags::NAMES);
    let command = flags::environment(command, "NETD", &["run_dir", "log_format"]);
    let command = flags::default(command, "etcd_endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379");
    let command = flags::default(command, "etcd_prefix", "/coreos.com/network");
    flags::default(command, "run_dir", super::config::RUN_DIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Invocation {
        run_as("netd", args, &[]).unwrap()
    }

    fn run_as(program: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, clap::Error> {
        let args = std::iter::once(program).chain(args.iter().copied()).map(OsString::from);
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Invocation::read(args, variable)
    }

    #[test]
    fn command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn one_dash_or_two_with_equals_or_without() {
        for args in [
            &["--iface=eth1", "--ip-masq", "--etcd-prefix", "/atomic.io/network"][..],
            &["-iface", "eth1", "-ip-masq=true", "-etcd-prefix=/atomic.io/network"],
            &[
                "-ip-masq=false",
                "--iface",
                "eth1",
                "--etcd-prefix=/x",
                "-ip-masq",
                "-etcd-prefix",
                "/atomic.io/network",
            ],
        ] {
            let flags = read(args).flags;
            assert_eq!(flags.iface, ["eth1"], "{args:?}");
            assert_eq!(flags.ip_masq, "true", "{args:?}");
            assert_eq!(flags.etcd.etcd_prefix.as_deref().unwrap(), "/atomic.io/network", "{args:?}");
        }
    }

    #[test]
    fn values_that_begin_with_a_dash_are_not_flags() {
        assert_eq!(read(&["-iface=-x"]).flags.iface, ["-x"]);
        assert!(matches!(read(&["status", "--json"]).verb, Some(Verb::Status { json: true, .. })));
    }

    #[test]
    fn unknown_flag_is_refused_by_name() {
        for program in ["netd", "flanneld"] {
            let error = run_as(program, &["--ifcae=eth0"], &[]).err().unwrap();
            assert!(error.to_string().contains("--ifcae"), "{error}");
        }
    }

    #[test]
    fn as_flanneld_there_are_no_verbs_and_words_are_ignored() {
        let read = |args: &[&str]| run_as("/usr/bin/flanneld", args, &[]).unwrap();
        for args in [&["-iface", "eth0", "status"][..], &["-iface=eth0", "true", "-iface=eth1"]] {
            let invocation = read(args);
            assert!(invocation.verb.is_none() && invocation.flags.iface == ["eth0"], "{args:?}");
            assert!(!invocation.ignored.is_empty(), "{args:?}");
        }
        assert!(read(&["-ip-masq", ""]).ignored.is_empty(), "an empty variable is an empty word");
    }

    #[test]
    fn older_service_files_come_before_the_command_line() {
        let variables = [
            ("FLANNEL_ETCD_ENDPOINTS", "http://10.4.7.12:2379"),
            ("FLANNEL_ETCD_PREFIX", "/atomic.io/network"),
            ("FLANNEL_OPTIONS", "-ip-masq -iface=eth0"),
        ];
        for program in ["netd", "flanneld"] {
            let flags = run_as(program, &["-etcd-prefix=/own", "-ip-masq=false"], &variables).unwrap().flags;
            assert_eq!(flags.etcd.etcd_endpoints.as_deref(), Some("http://10.4.7.12:2379"));
            assert_eq!(flags.etcd.etcd_prefix.as_deref(), Some("/own"));
            assert_eq!((flags.iface.as_slice(), flags.ip_masq.as_str()), (&["eth0".to_owned()][..], "false"));
        }
        let invocation = run_as("netd", &["status", "--json"], &variables).unwrap();
        assert!(matches!(invocation.verb, Some(Verb::Status { json: true, .. })));
    }

    #[test]
    fn glogs_flags_are_known_in_their_spelling() {
        let glog =
            read(&["-v", "2", "-vmodule=worker=2", "-log_backtrace_at", "worker.rs:9", "-logtostderr"]).flags.glog;
        assert_eq!(glog.vmodule.as_deref(), Some("worker=2"));
        assert_eq!(glog.log_backtrace_at.as_deref(), Some("worker.rs:9"));
        assert_eq!(glog.logtostderr.as_deref(), Some("true"));
    }
}
