//! Flags that both command lines have.
//!
//! Invariant: every value is text; the program's `config` reads all of it and reports every problem at once. A flag's
//! environment variable is `<PREFIX>_<NAME>`; prefix and default are the program's ([`environment`], [`default`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::{Args, Command};
use cluster::etcd;

use crate::log::{Form, Settings};
use crate::problem::Problem;

/// Where etcd is and how to be let in. The password is in no `Debug` text.
#[derive(Clone, Default, Args)]
pub struct EtcdFlags {
    /// etcd members, separated by commas.
    #[arg(long, global = true, value_name = "URL,...")]
    pub etcd_endpoints: Option<String>,
    /// Folder of the keys in etcd.
    #[arg(long, global = true, value_name = "PATH")]
    pub etcd_prefix: Option<String>,
    /// Private key of the client certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_keyfile: Option<String>,
    /// Client certificate for etcd.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_certfile: Option<String>,
    /// CA that signed etcd's certificates.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_cafile: Option<String>,
    /// User for etcd's own authentication.
    #[arg(long, global = true, value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// Its password; better given by the environment.
    #[arg(long, global = true, value_name = "TEXT", hide_env_values = true)]
    pub etcd_password: Option<String>,
}

impl EtcdFlags {
    /// Names of the flags, as [`environment`] takes them.
    pub const NAMES: [&str; 7] = [
        "etcd_endpoints",
        "etcd_prefix",
        "etcd_keyfile",
        "etcd_certfile",
        "etcd_cafile",
        "etcd_username",
        "etcd_password",
    ];

    /// The TLS files that were typed; an empty text is the same as none.
    #[must_use]
    pub fn tls_files(&self) -> etcd::TlsFiles {
        let given = |text: &Option<String>| text.as_ref().filter(|text| !text.is_empty()).map(Into::into);
        etcd::TlsFiles {
            ca: given(&self.etcd_cafile),
            cert: given(&self.etcd_certfile),
            key: given(&self.etcd_keyfile),
        }
    }

    /// What was typed, with what the TLS files hold, for the client to check; an empty text is the same as none.
    #[must_use]
    pub fn client_config(&self, tls: etcd::TlsMaterial) -> etcd::Config {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        etcd::Config {
            endpoints: self.etcd_endpoints.clone().unwrap_or_default(),
            tls,
            username: given(&self.etcd_username),
            password: given(&self.etcd_password),
            limits: etcd::Limits::default(),
        }
    }
}

impl fmt::Debug for EtcdFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.client_config(etcd::TlsMaterial::default());
        f.debug_tuple("EtcdFlags").field(&config).field(&self.tls_files()).finish()
    }
}

/// Form and detail of the log.
#[derive(Debug, Clone, Default, Args)]
pub struct LogFlags {
    /// Form of the log: `text` or `json` (one object a line, with the names of the Elastic Common Schema).
    #[arg(long, global = true, alias = "logging-format", value_name = "NAME", default_value = "text")]
    pub log_format: String,
    /// Detail of the log: 0 is normal, 1 adds debugging, 2 adds every step.
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", default_value = "0")]
    pub verbosity: String,
}

impl LogFlags {
    /// Reads the flags; what is wrong goes to `problems`, and the normal log is taken.
    pub fn read(&self, problems: &mut Vec<Problem>) -> Settings {
        let form = match self.log_format.as_str() {
            "text" => Form::Text,
            "json" => Form::Json,
            other => {
                problems.push(Problem::new("log-format", format!("{other:?}"), "text or json"));
                Form::Text
            }
        };
        let verbosity = self.verbosity.parse().unwrap_or_else(|_| {
            problems.push(Problem::new("v", format!("{:?}", self.verbosity), "a number from 0 to 255"));
            0
        });
        Settings { form, verbosity }
    }
}

/// Where the daemon leaves what others ask it for.
#[derive(Debug, Clone, Default, Args)]
pub struct RunFlags {
    /// Folder of run-time files: the status, the socket that `status` and `tables` ask.
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<String>,
}

/// Reads an address to serve at: `ADDRESS`, with `port` then, or `ADDRESS:PORT`; an empty text means nowhere.
///
/// # Errors
/// The problem with `field`.
pub fn bind_address(field: &str, text: &str, port: u16) -> Result<Option<SocketAddr>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let alone = |text: &str| text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port));
    match text.parse().ok().or_else(|| alone(text)) {
        Some(address) => Ok(Some(address)),
        None => Err(Problem::new(field, format!("{text:?}"), "ADDRESS:PORT such as 127.0.0.1:10249, or nothing")),
    }
}

/// Gives each of the arguments `names` of `command` its environment variable, `<prefix>_<FLAG>`.
#[must_use]
pub fn environment(command: Command, prefix: &str, names: &[&str]) -> Command {
    // `mut_args` keeps the order of the help, `mut_arg` does not.
    command.mut_args(|arg| {
        if !names.contains(&arg.get_id().as_str()) {
            return arg;
        }
        let flag = arg.get_long().unwrap_or(arg.get_id().as_str()).replace('-', "_").to_uppercase();
        arg.env(format!("{prefix}_{flag}"))
    })
}

/// Gives the argument `name` of `command` its default.
#[must_use]
pub fn default(command: Command, name: &str, value: &'static str) -> Command {
    command.mut_args(|arg| if arg.get_id() == name { arg.default_value(value) } else { arg })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

    use super::*;

    #[derive(Debug, Parser)]
    struct Invocation {
        #[command(subcommand)]
        verb: Option<Verb>,
        #[command(flatten)]
        etcd: EtcdFlags,
        #[command(flatten)]
        log: LogFlags,
        #[command(flatten)]
        run: RunFlags,
    }

    #[derive(Debug, Subcommand)]
    enum Verb {
        Status,
    }

    fn command() -> Command {
        let command = environment(Invocation::command(), "FLANNELD", &EtcdFlags::NAMES);
        let command = environment(command, "NETD", &["log_format", "run_dir"]);
        let command = environment(command, "FLANNELD", &["verbosity"]);
        default(default(command, "etcd_prefix", "/coreos.com/network"), "run_dir", "/run/netd")
    }

    fn read(args: &[&str]) -> Invocation {
        let args = std::iter::once("netd").chain(args.iter().copied());
        Invocation::from_arg_matches(&command().get_matches_from(args)).unwrap()
    }

    #[test]
    fn a_flags_variable_is_prefix_and_name() {
        let command = command();
        command.clone().debug_assert();
        let variables: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
        assert_eq!(
            variables,
            [
                "FLANNELD_ETCD_ENDPOINTS",
                "FLANNELD_ETCD_PREFIX",
                "FLANNELD_ETCD_KEYFILE",
                "FLANNELD_ETCD_CERTFILE",
                "FLANNELD_ETCD_CAFILE",
                "FLANNELD_ETCD_USERNAME",
                "FLANNELD_ETCD_PASSWORD",
                "NETD_LOG_FORMAT",
                "FLANNELD_V",
                "NETD_RUN_DIR",
            ]
        );
    }

    #[test]
    fn defaults_are_the_programs_and_flags_may_stand_behind_the_verb() {
        let read = read(&["status", "--run-dir=/tmp/x", "--etcd-keyfile="]);
        assert!(matches!(read.verb, Some(Verb::Status)));
        assert_eq!(read.run.run_dir.as_deref(), Some("/tmp/x"));
        assert_eq!(read.etcd.etcd_prefix.as_deref(), Some("/coreos.com/network"));
        assert_eq!(read.etcd.tls_files().key, None, "an empty text is none");
    }

    #[test]
    fn addresses_to_serve_at_may_lack_the_port_or_be_empty() {
        let read =
            |text: &str| bind_address("metrics-bind-address", text, 10249).map(|found| found.map(|a| a.to_string()));
        assert_eq!(read("127.0.0.1"), Ok(Some("127.0.0.1:10249".to_owned())));
        assert_eq!(read("[::1]:80"), Ok(Some("[::1]:80".to_owned())));
        assert_eq!(read("::1"), Ok(Some("[::1]:10249".to_owned())));
        assert_eq!(read(""), Ok(None));
        assert!(read("localhost:80").unwrap_err().to_string().starts_with("metrics-bind-address: \"localhost:80\""));
    }

    #[test]
    fn log_flags_that_are_wrong_are_all_reported() {
        let mut problems = Vec::new();
        let settings = read(&["--log-format=xml", "-v", "loud"]).log.read(&mut problems);
        assert_eq!(settings, Settings { form: Form::Text, verbosity: 0 });
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            ["log-format: \"xml\"; accepted: text or json", "v: \"loud\"; accepted: a number from 0 to 255"]
        );
    }
}
