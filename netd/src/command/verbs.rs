//! What can be asked of the program besides running the daemon.
//!
//! Invariant: each verb does its own work and ends; none of them starts a daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use daemon::manual::{Completions, Pages};
use daemon::terminal::Watch;

/// What to do instead of running the daemon.
#[derive(Subcommand)]
pub(crate) enum Verb {
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
    /// Check, show and change the network's configuration, in etcd or with --store=local in its file.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Show and change the leases in etcd.
    #[command(subcommand)]
    Lease(LeaseVerb),
    /// Find out what keeps Pods from reaching each other, with real packets to every node; exit status 1 for a problem.
    Doctor {
        /// Print the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a packet meets on its way, from both ends where it can, and where a real one was last seen; exit status 1
    /// when it does not arrive.
    Trace(Trace),
    /// List what this program has put into the kernel, and remove it; not while a daemon runs.
    Cleanup(Cleanup),
    /// Print a script by which a shell completes this program's command line.
    Completions(Completions),
    /// Write the manual pages of this program into a folder.
    Man(Pages),
    /// Write the options that dockerd needs for this node's subnet, as flannel's mk-docker-opts.sh does.
    DockerOpts(DockerOpts),
}

/// What to do with the network's configuration.
#[derive(Subcommand)]
pub(crate) enum ConfigVerb {
    /// Name every problem of the configuration with its field; exit status 1 if there is one.
    Check {
        /// A text that is not in the store; `-` is standard input.
        #[arg(short, long = "file", value_name = "FILE")]
        file: Option<String>,
    },
    /// Print the configuration as it was written.
    Show,
    /// Check another configuration, say what nodes will do about it, and write it in the place of the one that is there.
    Set {
        /// Where it comes from.
        #[command(flatten)]
        source: Source,
        /// Write nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Change single fields of the configuration, and set the result.
    Edit {
        /// Fields with their new values, such as Backend.MTU=1400; nothing behind the equals sign removes the field.
        #[arg(value_name = "FIELD=VALUE", required = true)]
        changes: Vec<String>,
        /// Write nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Where a new configuration comes from.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// The file that holds it; `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub file: Option<String>,
    /// Its text.
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
}

/// What to do with leases.
#[derive(Subcommand)]
pub(crate) enum LeaseVerb {
    /// List every key below `subnets/`: node, backend, when it was renewed and when it ends.
    List {
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Reserve a subnet for a node: a key without an end, as flannel's reservations are.
    Reserve {
        /// The subnet, such as 172.7.21.0/24, one of each family apart by a comma; a lease of it becomes the reservation.
        subnet: String,
        /// The node's address as the others see it, one of each family; not needed for a subnet that the node leases.
        #[arg(long, value_name = "IP")]
        node: Vec<std::net::IpAddr>,
    },
    /// Delete a reservation, or with --force a lease.
    Release {
        /// The subnet, such as 172.7.21.0/24.
        subnet: String,
        /// Delete a lease although it has not ended; a node that runs claims it again.
        #[arg(long)]
        force: bool,
    },
}

/// What to trace.
#[derive(Args)]
pub(crate) struct Trace {
    /// Who sends: a Pod of this node by namespace/name, name or container id, or an address of it; without `to` who is
    /// sent to, from this host.
    #[arg(value_name = "POD|IP")]
    pub subject: String,
    /// Where to: `to IP`, `to IP:PORT` (TCP) or `to IP:PORT/udp`; a Pod, a Service, a host, or an address outside.
    #[arg(value_name = "to IP:PORT", num_args = 0..=2)]
    pub to: Vec<String>,
    /// Print the steps as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How much to remove.
#[derive(Args)]
pub(crate) struct Cleanup {
    /// Remove what is listed.
    #[arg(long)]
    pub yes: bool,
    /// Its files as well: the subnet file, WireGuard's key, and what is in the folder of run-time files.
    #[arg(long)]
    pub files: bool,
    /// What flannel left as well: devices of its names, its routes, nft tables and chains of iptables-nft.
    #[arg(long)]
    pub flannel: bool,
    /// Nothing but flannel's nft tables and its chains and rules of iptables-nft, also while netd runs in flannel's place.
    #[arg(long, conflicts_with_all = ["flannel", "files"])]
    pub flannel_rules: bool,
}

/// The letters of mk-docker-opts.sh.
#[derive(Args)]
pub(crate) struct DockerOpts {
    /// The subnet file, in place of that of --subnet-file; one that is not there says nothing.
    #[arg(id = "variables", short = 'f', value_name = "FILE")]
    pub subnet_file: Option<PathBuf>,
    /// File to write.
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub output: PathBuf,
    /// Write each option as a variable of its own, such as DOCKER_OPT_MTU; with -c or neither both forms.
    #[arg(short = 'i')]
    pub individual: bool,
    /// Write all options in one variable; with -i or neither both forms.
    #[arg(short = 'c')]
    pub combined: bool,
    /// Leave --ip-masq out, for old versions of Docker.
    #[arg(short = 'm')]
    pub without_ip_masq: bool,
    /// The variable of all options.
    #[arg(short = 'k', value_name = "NAME", default_value = "DOCKER_OPTS")]
    pub key: String,
}
