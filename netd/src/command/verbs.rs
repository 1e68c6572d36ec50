//! What can be asked of the program besides running the daemon.
//!
//! Invariant: each verb does its own work and ends; none of them starts a daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// Write the options that dockerd needs for this node's subnet, as flannel's mk-docker-opts.sh does.
    DockerOpts(DockerOpts),
}

/// The letters of mk-docker-opts.sh.
#[derive(Args)]
pub(crate) struct DockerOpts {
    /// The subnet file; one that is not there says nothing.
    #[arg(short = 'f', value_name = "FILE", default_value = netstate::subnet_file::DEFAULT_PATH)]
    pub subnet_file: PathBuf,
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
