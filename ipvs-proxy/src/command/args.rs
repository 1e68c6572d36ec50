//! The command line and the environment: what was typed, nothing of what it means.
//!
//! Invariant: every value is text here; `config` reads all of it and reports every problem at once. Flags that kube-proxy
//! has are called as there.

use clap::{Args, Parser, Subcommand};

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
    /// Show what the running daemon knows and what it has put into the kernel.
    Status {
        /// Print the file as it is.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of the daemon and of the store.
#[derive(Debug, Clone, Args)]
pub(crate) struct Flags {
    /// etcd members, separated by commas.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_ENDPOINTS", value_name = "URL,...")]
    pub(crate) etcd_endpoints: Option<String>,
    /// Folder of the objects' keys in etcd.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_PREFIX", value_name = "PATH", default_value = "/ipvs-proxy")]
    pub(crate) etcd_prefix: String,
    /// Private key of the client certificate.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_KEYFILE", value_name = "FILE")]
    pub(crate) etcd_keyfile: Option<String>,
    /// Client certificate for etcd.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_CERTFILE", value_name = "FILE")]
    pub(crate) etcd_certfile: Option<String>,
    /// CA that signed etcd's certificates.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_CAFILE", value_name = "FILE")]
    pub(crate) etcd_cafile: Option<String>,
    /// User for etcd's own authentication.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_USERNAME", value_name = "NAME")]
    pub(crate) etcd_username: Option<String>,
    /// Its password; better given by the environment.
    #[arg(long, global = true, env = "IPVS_PROXY_ETCD_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    pub(crate) etcd_password: Option<String>,
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
    /// Folder of run-time files (status).
    #[arg(long, global = true, env = "IPVS_PROXY_RUN_DIR", value_name = "DIR", default_value = "/run/ipvs-proxy")]
    pub(crate) run_dir: String,
    /// Remove everything that this program has put into the kernel, and end.
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// Form of the log: `text` or `json`.
    #[arg(long, global = true, alias = "logging-format", value_name = "NAME", default_value = "text")]
    pub(crate) log_format: String,
    /// Detail of the log: 0 is normal, 1 adds debugging.
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", default_value = "0")]
    pub(crate) verbosity: String,
}
