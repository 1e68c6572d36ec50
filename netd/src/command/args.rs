//! The command line and the environment: what was typed, nothing of what it means.
//!
//! Invariant: every value is text here; `config` reads all of it and reports every problem at once. Flags are Go's: one
//! dash or two, `--flag=value` or `--flag value`, switches with or without `=true`, the last one wins. Each flag of
//! flannel can come from `FLANNELD_<NAME>` when it is not on the command line, the others from `NETD_<NAME>`.

use std::ffi::OsString;

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use daemon::flags::{self, EtcdFlags, LogFlags, RunFlags};

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
}

/// What to do instead of running the daemon.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Show what the running daemon knows and what it has put into the kernel.
    Status {
        /// Print the file as it is.
        #[arg(long)]
        json: bool,
    },
    /// Show the rows of every kernel table, as they are desired and as the kernel holds them.
    Tables {
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of the daemon.
#[derive(Args, Default)]
pub(crate) struct Flags {
    /// Where leases are kept: `etcd`, or `local` for a single machine that needs no store.
    #[arg(long, env = "NETD_STORE", value_name = "NAME", default_value = "etcd")]
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
    /// File that names this node's subnet to the CNI plugin.
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE", default_value = netstate::subnet_file::DEFAULT_PATH)]
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
    /// Accept forwarded packets of the Pod network (nftables, whatever the flag's name).
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub iptables_forward_rules: String,
    /// File with the network's configuration, for `--store=local`.
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    pub net_config_path: String,
    /// How a subnet is chosen, in order: `previous`, `node-ip`, `first-free`.
    #[arg(long, env = "NETD_LEASE_POLICY", value_name = "NAME,...", default_value = "previous,node-ip,first-free")]
    pub lease_policy: String,
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
    /// Folder of run-time files.
    #[command(flatten)]
    pub run: RunFlags,
    /// Form and detail of the log.
    #[command(flatten)]
    pub log: LogFlags,
    /// Flags of flannel that this program does not have.
    #[command(flatten)]
    pub unbuilt: Unbuilt,
}

/// Flags of flannel that have no meaning here yet: known, so that they are refused by name, and accepted where they say
/// what happens anyway.
#[derive(Args, Default)]
pub(crate) struct Unbuilt {
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) kube_subnet_mgr: Option<String>,
    #[arg(long, env = "FLANNELD_IP_BLACKHOLE_ROUTE", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ip_blackhole_route: Option<String>,
    #[arg(long, env = "FLANNELD_SET_NODE_NETWORK_UNAVAILABLE", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) set_node_network_unavailable: Option<String>,
    #[arg(long, env = "FLANNELD_IPTABLES_RESYNC", hide = true)]
    pub(crate) iptables_resync: Option<String>,
    #[arg(long, env = "FLANNELD_KUBE_API_URL", hide = true)]
    pub(crate) kube_api_url: Option<String>,
    #[arg(long, env = "FLANNELD_KUBECONFIG_FILE", hide = true)]
    pub(crate) kubeconfig_file: Option<String>,
    #[arg(long, env = "FLANNELD_KUBE_ANNOTATION_PREFIX", hide = true)]
    pub(crate) kube_annotation_prefix: Option<String>,
    #[arg(long, env = "FLANNELD_PUBLIC_IPV6", hide = true)]
    pub(crate) public_ipv6: Option<String>,
}

impl Invocation {
    /// Reads a command line, program name first, and the environment.
    ///
    /// # Errors
    /// When a flag is unknown or lacks its value; also for `--help` and `--version`, whose text it carries.
    pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let flags: Vec<String> = command
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .map(str::to_owned)
            .chain(["help".to_owned(), "version".to_owned()])
            .collect();
        let args = args.into_iter().map(|arg| two_dashes(arg, &flags));
        let matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches(&matches)
    }
}

fn command() -> Command {
    let command = flags::environment(Invocation::command(), "FLANNELD", &EtcdFlags::NAMES);
    let command = flags::environment(command, "FLANNELD", &["verbosity"]);
    let command = flags::environment(command, "NETD", &["run_dir", "log_format"]);
    let command = flags::default(command, "etcd_endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379");
    let command = flags::default(command, "etcd_prefix", "/coreos.com/network");
    flags::default(command, "run_dir", super::config::RUN_DIR)
}

/// Every environment variable that is read as a flag.
#[cfg(test)]
pub(crate) fn variables() -> std::collections::BTreeSet<String> {
    let command = command();
    let names = command.get_arguments().filter_map(|arg| arg.get_env()).filter_map(|name| name.to_str());
    names.map(str::to_owned).collect()
}

/// Go's flag package takes `-iface` for `--iface`.
fn two_dashes(arg: OsString, flags: &[String]) -> OsString {
    let known = |text: &str| {
        let name = text.strip_prefix('-')?.split('=').next()?;
        flags.iter().any(|flag| flag == name).then(|| format!("-{text}"))
    };
    arg.to_str().and_then(known).map_or(arg, OsString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Invocation {
        Invocation::read(std::iter::once("netd").chain(args.iter().copied()).map(OsString::from)).unwrap()
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
        let error = Invocation::read(["netd", "--ifcae=eth0"].map(OsString::from)).err().unwrap();
        assert!(error.to_string().contains("--ifcae"), "{error}");
    }
}
