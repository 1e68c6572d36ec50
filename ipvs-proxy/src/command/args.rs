//! The command line and the environment: what was typed, nothing of what it means.
//!
//! Invariant: every value is text here; `config` reads all of it and reports every problem at once. Flags that kube-proxy
//! has are called as there.

use std::ffi::OsString;

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use daemon::flags::{self, EtcdFlags, LogFlags, RunFlags};
use daemon::manual::{Completions, Pages};

/// Keeps IPVS virtual servers equal to Services and EndpointSlices.
#[derive(Debug, Parser)]
#[command(name = "ipvs-proxy", version, args_override_self = true, max_term_width = 110)]
pub(crate) struct Invocation {
    /// What to do; without a word: run the daemon.
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// Flags of the daemon and of the store.
    #[command(flatten)]
    pub(crate) flags: Flags,
}

/// What to do instead of running the daemon.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Put the Services and EndpointSlices of a manifest into etcd.
    Apply {
        /// Manifest, YAML or JSON; `-` is standard input. May be repeated.
        #[arg(short, long = "filename", value_name = "FILE", required = true)]
        filename: Vec<String>,
    },
    /// Delete objects from etcd.
    Delete {
        /// Manifest that names them; `-` is standard input. May be repeated.
        #[arg(short, long = "filename", value_name = "FILE", required_unless_present = "objects")]
        filename: Vec<String>,
        /// Objects as `service/web` or `endpointslice/web-1`.
        #[arg(value_name = "KIND/NAME")]
        objects: Vec<String>,
        /// Namespace of the objects named by KIND/NAME.
        #[arg(short, long, default_value = "default", value_name = "NAME")]
        namespace: String,
    },
    /// List the Services in etcd with their endpoints.
    List,
    /// Print a script by which a shell completes this program's command line.
    Completions(Completions),
    /// Write the manual pages of this program into a folder.
    Man(Pages),
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

/// Flags of the daemon and of the store.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flags {
    /// Where etcd is.
    #[command(flatten)]
    pub(crate) etcd: EtcdFlags,
    /// Directory of manifests to serve instead of etcd's objects.
    #[arg(long, env = "IPVS_PROXY_SERVICES_DIR", value_name = "DIR")]
    pub(crate) services_dir: Option<String>,
    /// The Pod network: its Pods keep their source address, everybody else is masqueraded.
    #[arg(long, env = "IPVS_PROXY_CLUSTER_CIDR", value_name = "NETWORK")]
    pub(crate) cluster_cidr: Option<String>,
    /// The Service network; virtual addresses outside it are refused.
    #[arg(long, env = "IPVS_PROXY_SERVICE_CIDR", value_name = "NETWORK")]
    pub(crate) service_cidr: Option<String>,
    /// Name of this node in EndpointSlices; the host name when not given.
    #[arg(long, env = "IPVS_PROXY_HOSTNAME_OVERRIDE", value_name = "NAME")]
    pub(crate) hostname_override: Option<String>,
    /// The kernel's name of the scheduler: rr, wrr, lc, wlc, sh, mh, ...
    #[arg(long, env = "IPVS_PROXY_IPVS_SCHEDULER", value_name = "NAME", default_value = "rr")]
    pub(crate) ipvs_scheduler: String,
    /// Longest time that connections to an endpoint that was taken out may go on.
    #[arg(long, env = "IPVS_PROXY_IPVS_GRACEFUL_PERIOD", value_name = "TIME", default_value = "15m")]
    pub(crate) ipvs_graceful_period: String,
    /// Idle time after which IPVS forgets an established TCP connection; 0 leaves the kernel's.
    #[arg(long, env = "IPVS_PROXY_IPVS_TCP_TIMEOUT", value_name = "TIME", default_value = "0s")]
    pub(crate) ipvs_tcp_timeout: String,
    /// The same after a FIN.
    #[arg(long, env = "IPVS_PROXY_IPVS_TCPFIN_TIMEOUT", value_name = "TIME", default_value = "0s")]
    pub(crate) ipvs_tcpfin_timeout: String,
    /// The same for UDP.
    #[arg(long, env = "IPVS_PROXY_IPVS_UDP_TIMEOUT", value_name = "TIME", default_value = "0s")]
    pub(crate) ipvs_udp_timeout: String,
    /// Address for health checks, `ADDRESS:PORT`; an empty one serves none.
    #[arg(long, env = "IPVS_PROXY_HEALTHZ_BIND_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:10256")]
    pub(crate) healthz_bind_address: String,
    /// Address for metrics, status and tables, `ADDRESS:PORT`; an empty one serves none.
    #[arg(long, env = "IPVS_PROXY_METRICS_BIND_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:10249")]
    pub(crate) metrics_bind_address: String,
    /// Folder of run-time files.
    #[command(flatten)]
    pub(crate) run: RunFlags,
    /// Remove everything that this program has put into the kernel, and end.
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// Form and detail of the log.
    #[command(flatten)]
    pub(crate) log: LogFlags,
}

impl Invocation {
    /// Reads a command line, program name first, and the environment.
    ///
    /// # Errors
    /// When a flag is unknown or lacks its value; also for `--help` and `--version`, whose text it carries.
    pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(args)?;
        Self::from_arg_matches(&matches)
    }
}

/// The command line with all verbs and flags.
pub(crate) fn command() -> Command {
    let command = flags::environment(Invocation::command(), "IPVS_PROXY", &EtcdFlags::NAMES);
    let command = flags::environment(command, "IPVS_PROXY", &["run_dir", "log_format", "verbosity"]);
    let command = flags::default(command, "etcd_prefix", "/ipvs-proxy");
    flags::default(command, "run_dir", "/run/ipvs-proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn variables_are_the_flags_with_the_programs_name_in_front() {
        let command = command();
        let variables: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
        assert_eq!(
            variables,
            [
                "IPVS_PROXY_ETCD_ENDPOINTS",
                "IPVS_PROXY_ETCD_PREFIX",
                "IPVS_PROXY_ETCD_KEYFILE",
                "IPVS_PROXY_ETCD_CERTFILE",
                "IPVS_PROXY_ETCD_CAFILE",
                "IPVS_PROXY_ETCD_USERNAME",
                "IPVS_PROXY_ETCD_PASSWORD",
                "IPVS_PROXY_SERVICES_DIR",
                "IPVS_PROXY_CLUSTER_CIDR",
                "IPVS_PROXY_SERVICE_CIDR",
                "IPVS_PROXY_HOSTNAME_OVERRIDE",
                "IPVS_PROXY_IPVS_SCHEDULER",
                "IPVS_PROXY_IPVS_GRACEFUL_PERIOD",
                "IPVS_PROXY_IPVS_TCP_TIMEOUT",
                "IPVS_PROXY_IPVS_TCPFIN_TIMEOUT",
                "IPVS_PROXY_IPVS_UDP_TIMEOUT",
                "IPVS_PROXY_HEALTHZ_BIND_ADDRESS",
                "IPVS_PROXY_METRICS_BIND_ADDRESS",
                "IPVS_PROXY_RUN_DIR",
                "IPVS_PROXY_LOG_FORMAT",
                "IPVS_PROXY_V",
            ]
        );
    }
}
