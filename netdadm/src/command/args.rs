//! The command line: what was typed.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory, Parser, Subcommand};
use daemon::manual::{Completions, Pages};
use daemon::terminal::Watch;

use crate::status::Component;

/// Checks the topology of a cluster, one file of hosts, networks and versions, and renders what its hosts get.
#[derive(Debug, Clone, Parser)]
#[command(name = "netdadm", version, args_override_self = true, max_term_width = 110)]
pub(super) struct Invocation {
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Verb {
    /// Name every mistake of a topology, with line and column, and what the hosts will be.
    Check(Check),
    /// Write, for each host, the files and units that the topology makes of it, with certificates and keys.
    Render(Render),
    /// The certificates of a cluster: what there is and until when.
    Certs(Certs),
    /// Bring this host to what a rendered folder has for it: files, then units, each waited for.
    Apply(Apply),
    /// Name everything on this host that keeps a cluster from coming up, with the command that mends it.
    Preflight(Preflight),
    /// Ask every component of every host how it is, in one table.
    Status(Asked),
    /// Wait for a new node, or drain one and take it away.
    Node(NodeOrder),
    /// Add, remove or replace a member of etcd, in the order that never loses the quorum.
    Etcd(Etcd),
    /// Take a snapshot of etcd into a file, whole and verified.
    Backup(Backup),
    /// Verify a snapshot of etcd, and print which commands on which hosts make a cluster of it, in the order that loses nothing.
    Restore(Restore),
    /// Print a script by which a shell completes this program's command line.
    Completions(Completions),
    /// Write the manual pages of this program into a folder.
    Man(Pages),
}

/// What to check.
#[derive(Debug, Clone, Args)]
pub(super) struct Check {
    /// The topology, YAML or JSON; `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// What to render.
#[derive(Debug, Clone, Args)]
pub(super) struct Render {
    /// The topology, YAML or JSON; `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The folder; it belongs to one cluster, and what is as it should be stays as it is.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: PathBuf,
    /// Print what changed as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// What to do with certificates.
#[derive(Debug, Clone, Args)]
pub(super) struct Certs {
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: CertsVerb,
}

/// What to do with certificates.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum CertsVerb {
    /// List each certificate with its use, names, authority and the days that are left; what ends first comes first. The
    /// status is 1 when one has ended, ends soon or is wrong.
    List(CertsList),
    /// Issue certificates anew into the folder that `render` wrote: those of which less than a third of their life is left,
    /// and those that are asked for. What is issued, why, and what hosts must start again for it is said first.
    Renew(CertsRenew),
}

/// Which certificates to list.
#[derive(Debug, Clone, Args)]
pub(super) struct CertsList {
    /// The folder that `render` wrote.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: Option<PathBuf>,
    /// Without `--output`: the root of the host whose certificates are listed.
    #[arg(long, value_name = "FOLDER", default_value = "/", conflicts_with = "output")]
    pub(super) root: PathBuf,
    /// Days that must be left of each certificate.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(super) days: u32,
    /// Print the certificates as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Which certificates to issue anew.
#[derive(Debug, Clone, Args)]
pub(super) struct CertsRenew {
    /// The topology, YAML or JSON.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The folder that `render` wrote from it.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: PathBuf,
    /// One that is issued although it is not due, on every host as `etcd/server`, on one as `hdss7-21: etcd/server`; may be
    /// given several times.
    #[arg(long, value_name = "CERTIFICATE", conflicts_with = "all")]
    pub(super) only: Vec<String>,
    /// All are issued, due or not.
    #[arg(long)]
    pub(super) all: bool,
    /// Write without asking.
    #[arg(long)]
    pub(super) yes: bool,
}

/// What to bring to a host.
#[derive(Debug, Clone, Args)]
pub(super) struct Apply {
    /// The host's name in the topology.
    #[arg(long, value_name = "NAME")]
    pub(super) host: String,
    /// The folder that `netdadm render` made.
    #[arg(value_name = "FOLDER")]
    pub(super) folder: PathBuf,
    /// Write below this folder, for a machine that does not run: files only.
    #[arg(long, value_name = "FOLDER")]
    pub(super) root: Option<PathBuf>,
    /// Do it without asking.
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Take over a host that was applied from the folder of another cluster or host.
    #[arg(long)]
    pub(super) adopt: bool,
    /// Replace files that netdadm did not write, or that were changed since; a copy is kept of each.
    #[arg(long)]
    pub(super) overwrite: bool,
}

/// What this host is examined for.
#[derive(Debug, Clone, Args)]
pub(super) struct Preflight {
    /// The topology, YAML or JSON, `-` for standard input; without one only what every host needs is asked.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Which of its hosts this one is; else the one with this host's name.
    #[arg(long, value_name = "NAME", requires = "file")]
    pub(super) host: Option<String>,
    /// Print the findings as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// What is asked.
#[derive(Debug, Clone, Args)]
pub(super) struct Asked {
    /// The topology, YAML or JSON; `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The folder that `netdadm render` made: its authorities and certificates are used. Without it servers are not verified.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: Option<PathBuf>,
    /// Ask these components only.
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    pub(super) only: Vec<Component>,
    /// How long every answer may take, in seconds, 1 to 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(super) timeout: u16,
    /// Print the rows as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// Whether again and again.
    #[command(flatten)]
    pub(super) watch: Watch,
}

/// What to do with a node.
#[derive(Debug, Clone, Args)]
pub(super) struct NodeOrder {
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: NodeVerb,
}

/// What to do with a node.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum NodeVerb {
    /// Say what is to be applied on the host, and wait until its lease is there and its Node is Ready.
    Add(NodeAdd),
    /// Cordon the node, evict its Pods as PodDisruptionBudgets let them go, delete the Node, and the lease of a host that does
    /// not answer any more.
    Remove(NodeRemove),
}

/// Which node.
#[derive(Debug, Clone, Args)]
pub(super) struct OneNode {
    /// The host.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// The topology, YAML or JSON.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The folder that `netdadm render` made: its certificates and `admin.conf` are used.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: PathBuf,
    /// How long to wait for the node, or for its Pods to go, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(super) wait: u16,
    /// Do it without asking.
    #[arg(short, long)]
    pub(super) yes: bool,
}

/// Which node is waited for.
#[derive(Debug, Clone, Args)]
pub(super) struct NodeAdd {
    #[command(flatten)]
    pub(super) common: OneNode,
}

/// Which node goes.
#[derive(Debug, Clone, Args)]
pub(super) struct NodeRemove {
    #[command(flatten)]
    pub(super) common: OneNode,
    /// Evict Pods that no controller makes again, and those whose emptyDir goes with them.
    #[arg(long)]
    pub(super) force: bool,
}

/// What to do with a member of etcd.
#[derive(Debug, Clone, Args)]
pub(super) struct Etcd {
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: EtcdVerb,
}

/// What to do with a member of etcd.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum EtcdVerb {
    /// Add the member of a host of the topology: without a vote until it has caught up.
    Add(Membership),
    /// Remove a member, unless the quorum would be lost; if it leads, another one leads first.
    Remove(Membership),
    /// Replace a member whose data are lost, or a living one by a member of another host.
    Replace {
        #[command(flatten)]
        common: Membership,
        /// The host that gets the new member, if it is another one.
        #[arg(long, value_name = "HOST")]
        by: Option<String>,
    },
}

/// The members of etcd that are asked.
#[derive(Debug, Clone, Args)]
pub(super) struct Members {
    /// The topology, YAML or JSON.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The folder that `netdadm render` made: its certificates are used.
    #[arg(short, long = "output", value_name = "FOLDER")]
    pub(super) output: PathBuf,
    /// How long every answer may take, in seconds, 1 to 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(super) timeout: u16,
}

/// Which member of etcd.
#[derive(Debug, Clone, Args)]
pub(super) struct Membership {
    /// The host, or the name or id of its member.
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) members: Members,
    /// How long each step may take, in seconds; that a member starts is a step.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(super) wait: u16,
    /// Do it without asking.
    #[arg(short, long)]
    pub(super) yes: bool,
}

/// What a snapshot is taken of.
#[derive(Debug, Clone, Args)]
pub(super) struct Backup {
    #[command(flatten)]
    pub(super) members: Members,
    /// The file of the snapshot, which is not there yet; it gets the mode 0600.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) snapshot: PathBuf,
    /// Take it without asking.
    #[arg(short, long)]
    pub(super) yes: bool,
}

/// What is to be restored.
#[derive(Debug, Clone, Args)]
pub(super) struct Restore {
    /// The topology, YAML or JSON; `-` is standard input.
    #[arg(short, long = "file", value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The file that `netdadm backup` or `etcdctl snapshot save` wrote.
    #[arg(value_name = "SNAPSHOT")]
    pub(super) snapshot: PathBuf,
}

/// All of it, for help, pages and completions.
pub(super) fn command() -> Command {
    Invocation::command()
}
