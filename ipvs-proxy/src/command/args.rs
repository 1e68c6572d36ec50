//! The command line and the environment: what was typed, nothing of what it means.
//!
//! Invariant: every value is text here; `config` reads all of it and reports every problem at once. Flags that kube-proxy
//! has are called as there, and made from the table of its settings.

use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use daemon::flags::{self, EtcdFlags, LogFlags, RunFlags};
use daemon::manual::{Completions, Pages};
use daemon::terminal::Watch;

use super::settings::{self, Given};
use crate::explain::Target;

/// Keeps IPVS virtual servers, or nftables, equal to Services and EndpointSlices.
#[derive(Debug, Clone, Parser)]
#[command(name = "ipvs-proxy", version, args_override_self = true, max_term_width = 110)]
pub(crate) struct Invocation {
    /// What to do; without a word: run the daemon.
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// Flags of the daemon and of the store.
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// Values of kube-proxy's flags.
    #[arg(skip)]
    pub(crate) given: Given,
    /// The program was started under the name of kube-proxy.
    #[arg(skip)]
    pub(crate) as_kube_proxy: bool,
    /// Its name and the flags that were given, on the command line or by the environment, but for the password.
    #[arg(skip)]
    pub(crate) words: Vec<String>,
}

/// What to do instead of running the daemon.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Explain what becomes of a connection to a Service: by its objects, by the plan, and by the rows of the kernel.
    Explain(Explain),
    /// Find out what keeps clients from Services on this node; each finding with what to do.
    Doctor {
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
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
        /// Whether again and again.
        #[command(flatten)]
        watch: Watch,
    },
    /// Show the rows of every kernel table, as they are desired and as the kernel holds them.
    Tables {
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is to be explained.
#[derive(Debug, Clone, Args)]
pub(crate) struct Explain {
    /// Where a client connects: ADDRESS:PORT, or a Service as NAMESPACE/NAME:PORT, with /udp or /sctp behind it where it is not TCP.
    #[arg(value_name = "PLACE")]
    pub(crate) target: Target,
    /// The client's address; when not given a Pod, this node and a host outside are explained.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) from: Option<IpAddr>,
    /// Print it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
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
    /// The Service network, or one of each family; virtual addresses outside it are refused.
    #[arg(long, env = "IPVS_PROXY_SERVICE_CIDR", value_name = "NETWORK,...")]
    pub(crate) service_cidr: Option<String>,
    /// Zone of this node: where all endpoints of a Service are meant for zones, its clients here reach those of this one. The label
    /// topology.kubernetes.io/zone of the own Node object when not given.
    #[arg(long, env = "IPVS_PROXY_NODE_ZONE", value_name = "NAME")]
    pub(crate) node_zone: Option<String>,
    /// Longest time that connections to an endpoint that was taken out may go on.
    #[arg(long, env = "IPVS_PROXY_IPVS_GRACEFUL_PERIOD", value_name = "TIME", default_value = "15m")]
    pub(crate) ipvs_graceful_period: String,
    /// What /metrics says of each Service that had clients: all (new connections, and by IPVS packets and bytes), connections, or off.
    #[arg(long, env = "IPVS_PROXY_SERVICE_METRICS", value_name = "WHAT", default_value = "all")]
    pub(crate) service_metrics: String,
    /// Folder of run-time files.
    #[command(flatten)]
    pub(crate) run: RunFlags,
    /// Configuration file, a KubeProxyConfiguration in YAML or JSON; what it can say is taken from it, and followed.
    #[arg(long, env = "IPVS_PROXY_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<String>,
    /// Write what the flags and the file say, with all defaults, into this file as a KubeProxyConfiguration, and end.
    #[arg(long, value_name = "FILE")]
    pub(crate) write_config_to: Option<String>,
    /// Set what needs the rights of the whole host (kernel parameters, IPVS), and end.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_name = "BOOL")]
    pub(crate) init_only: bool,
    /// Remove everything that this program has put into the kernel, and end; virtual servers are left to a kube-proxy that works with them.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_name = "BOOL")]
    pub(crate) cleanup: bool,
    /// Remove what a kube-proxy has left that does not run any more, and end: its chains of iptables-nft, its nft tables, its sets, and its
    /// virtual servers without connections that this program has not taken over.
    #[arg(long)]
    pub(crate) cleanup_kube_proxy: bool,
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
        let args: Vec<OsString> = args.into_iter().map(dashed).collect();
        let as_kube_proxy = args.first().is_some_and(|path| is_kube_proxy(path));
        let command = command();
        let matches = command.clone().try_get_matches_from(args)?;
        let given = settings::flags::given(&command, &matches);
        let words = words(&command, &matches, if as_kube_proxy { KUBE_PROXY } else { "ipvs-proxy" });
        Ok(Self { given, as_kube_proxy, words, ..Self::from_arg_matches(&matches)? })
    }
}

/// The one flag that holds a secret; the others name files.
const SECRET: &str = "etcd-password";

/// `name`, and every flag that was given with its values.
fn words(command: &Command, matches: &ArgMatches, name: &str) -> Vec<String> {
    let of_flag = |arg: &Arg| {
        let long = arg.get_long().filter(|long| *long != SECRET)?;
        let given = matches.value_source(arg.get_id().as_str())?;
        let values = matches.get_raw(arg.get_id().as_str()).filter(|_| given != ValueSource::DefaultValue)?;
        Some(values.map(|value| format!("--{long}={}", value.to_string_lossy())).collect::<Vec<_>>())
    };
    std::iter::once(name.to_owned()).chain(command.get_arguments().filter_map(of_flag).flatten()).collect()
}

/// kube-proxy's name.
const KUBE_PROXY: &str = "kube-proxy";

fn is_kube_proxy(path: &OsStr) -> bool {
    Path::new(path).file_name().is_some_and(|name| name == KUBE_PROXY)
}

/// A flag with dashes where it has underscores, which kube-proxy takes for the same.
fn dashed(arg: OsString) -> OsString {
    match arg.to_str().and_then(|text| text.strip_prefix("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            format!("--{}{value}", name.replace('_', "-")).into()
        }
        None => arg,
    }
}

/// The command line with all verbs and flags.
pub(crate) fn command() -> Command {
    let command = flags::environment(Invocation::command(), "IPVS_PROXY", &EtcdFlags::NAMES);
    let command = flags::environment(command, "IPVS_PROXY", &["run_dir", "log_format", "verbosity"]);
    let command = flags::default(command, "etcd_prefix", "/ipvs-proxy");
    let command = flags::default(command, "run_dir", "/run/ipvs-proxy");
    settings::flags::add(command, "IPVS_PROXY")
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
        let own = &variables[..17];
        assert_eq!(
            own,
            [
                "IPVS_PROXY_ETCD_ENDPOINTS",
                "IPVS_PROXY_ETCD_PREFIX",
                "IPVS_PROXY_ETCD_KEYFILE",
                "IPVS_PROXY_ETCD_CERTFILE",
                "IPVS_PROXY_ETCD_CAFILE",
                "IPVS_PROXY_ETCD_USERNAME",
                "IPVS_PROXY_ETCD_PASSWORD",
                "IPVS_PROXY_SERVICES_DIR",
                "IPVS_PROXY_SERVICE_CIDR",
                "IPVS_PROXY_NODE_ZONE",
                "IPVS_PROXY_IPVS_GRACEFUL_PERIOD",
                "IPVS_PROXY_SERVICE_METRICS",
                "IPVS_PROXY_RUN_DIR",
                "IPVS_PROXY_CONFIG",
                "IPVS_PROXY_LOG_FORMAT",
                "IPVS_PROXY_V",
                "IPVS_PROXY_FEATURE_GATES",
            ]
        );
        let named = |arg: &clap::Arg| Some(format!("IPVS_PROXY_{}", arg.get_long()?.replace('-', "_").to_uppercase()));
        for arg in command.get_arguments().filter(|arg| arg.get_env().is_some()) {
            assert_eq!(arg.get_env().and_then(OsStr::to_str).map(str::to_owned), named(arg));
        }
    }

    #[test]
    fn flags_that_were_given_can_be_given_again_and_hold_no_password() {
        let typed = [
            "kube-proxy",
            "--services-dir",
            "/run/services",
            "--ipvs-exclude-cidrs=10.0.0.0/8",
            "--cleanup",
            "--ipvs-exclude-cidrs=10.1.0.0/16",
            "--etcd-username=root",
            "--etcd-password=secret",
            "--cluster-cidr=172.7.0.0/16",
        ];
        let first = Invocation::read(typed.iter().map(Into::into)).unwrap();
        assert!(!first.words.join(" ").contains("secret"), "{:?}", first.words);
        let again = Invocation::read(first.words.iter().map(Into::into)).unwrap();
        assert_eq!((&again.given, &again.words), (&first.given, &first.words));
        assert!(again.as_kube_proxy && again.flags.cleanup);
        assert_eq!(again.flags.services_dir.as_deref(), Some("/run/services"));
    }

    #[test]
    fn flags_of_kube_proxy_are_read_as_it_reads_them() {
        let read = |words: &[&str]| Invocation::read(words.iter().map(Into::into)).unwrap();
        let invocation = read(&[
            "/usr/local/bin/kube-proxy",
            "--ipvs_scheduler=lc",
            "--masquerade-all",
            "--ipvs-exclude-cidrs=10.0.0.0/8",
            "--ipvs-exclude-cidrs=10.1.0.0/16,10.2.0.0/16",
            "--oom-score-adj",
            "-998",
            "--v=4",
            "--init-only",
            "--hostname-override=a_b",
        ]);
        let value = |key: &str| invocation.given.get(key).map_or("", String::as_str);
        assert!(invocation.as_kube_proxy && invocation.flags.init_only && !invocation.flags.cleanup);
        assert_eq!((value("ipvs.scheduler"), value("iptables.masqueradeAll")), ("lc", "true"));
        assert_eq!(value("ipvs.excludeCIDRs"), "10.0.0.0/8,10.1.0.0/16,10.2.0.0/16");
        assert_eq!((value("oomScoreAdj"), value("logging.verbosity"), value("hostnameOverride")), ("-998", "4", "a_b"));
        let quiet = read(&["ipvs-proxy"]);
        assert!(!quiet.as_kube_proxy && quiet.given.is_empty(), "{:?}", quiet.given);
    }
}
