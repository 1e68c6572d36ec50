//! Flags that both command lines have.
//!
//! Invariant: every value is text; the program's `config` reads all of it and reports every problem at once. A flag's
//! environment variable is `<PREFIX>_<NAME>`; prefix and default are the program's ([`environment`], [`default`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use clap::builder::Resettable;
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
    /// Form of the log: `text`, `json` (one object a line, with the names of the Elastic Common Schema), `journal` (fields of
    /// journald), or `auto`: text on a terminal, journal under systemd, json elsewhere.
    #[arg(long, global = true, alias = "logging-format", value_name = "NAME", default_value = "auto")]
    pub log_format: String,
    /// Detail of the log: 0 is normal, 1 adds each row that is written, 2 adds what libraries trace.
    #[arg(short = 'v', long = "v", global = true, value_name = "LEVEL", default_value = "0")]
    pub verbosity: String,
}

impl LogFlags {
    /// Reads the flags; what is wrong goes to `problems`, and the normal log is taken.
    pub fn read(&self, problems: &mut Vec<Problem>) -> Settings {
        let form = match self.log_format.as_str() {
            "auto" => Form::Auto,
            "text" => Form::Text,
            "json" => Form::Json,
            "journal" => Form::Journal,
            other => {
                problems.push(Problem::new("log-format", format!("{other:?}"), "auto, text, json or journal"));
                Form::Auto
            }
        };
        // klog reads a number of 32 bits with a sign.
        let verbosity = self.verbosity.parse::<i32>().unwrap_or_else(|_| {
            problems.push(Problem::new("v", format!("{:?}", self.verbosity), "a number such as 2"));
            0
        });
        let verbosity = u8::try_from(verbosity.clamp(0, 255)).unwrap_or_default();
        Settings { form, verbosity, ..Settings::default() }
    }
}

/// Flags of glog and klog besides `-v`, in their spelling.
#[derive(Debug, Clone, Default, Args)]
pub struct GlogFlags {
    /// Detail of single modules, by patterns of their names.
    #[arg(long, value_name = "PATTERN=N,...")]
    pub vmodule: Option<String>,
    /// Write the stack whenever this line of the source logs.
    #[arg(long = "log_backtrace_at", value_name = "FILE:LINE")]
    pub log_backtrace_at: Option<String>,
    /// The log goes to standard error.
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub logtostderr: Option<String>,
    /// The log goes to standard error as well.
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub alsologtostderr: Option<String>,
    /// Level from which on the log goes to standard error; all of it does.
    #[arg(long, hide = true, value_name = "LEVEL")]
    pub stderrthreshold: Option<String>,
    /// Folder for log files; none are written.
    #[arg(long = "log_dir", hide = true, value_name = "DIR")]
    pub log_dir: Option<String>,
}

impl GlogFlags {
    /// Names of the flags, as [`environment`] takes them.
    pub const NAMES: [&str; 2] = ["vmodule", "log_backtrace_at"];

    /// Adds what the flags say to `settings`; what is wrong goes to `problems`.
    pub fn read(&self, settings: &mut Settings, problems: &mut Vec<Problem>) {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let mut refuse = |flag: &str, found: &str, accepted: &str| {
            problems.push(Problem::new(flag, format!("{found:?}"), accepted));
        };
        if let Some(text) = given(&self.vmodule) {
            match text.parse() {
                Ok(modules) => settings.modules = modules,
                Err(accepted) => refuse("vmodule", &text, accepted),
            }
        }
        if let Some(text) = given(&self.log_backtrace_at) {
            match text.parse() {
                Ok(line) => settings.backtrace_at = Some(line),
                Err(accepted) => refuse("log_backtrace_at", &text, accepted),
            }
        }
        // What sends the log to files is refused, so that nobody waits for one.
        let kept = given(&self.alsologtostderr).is_some_and(|text| text != "false");
        if let Some(text) = given(&self.logtostderr).filter(|text| text == "false" && !kept) {
            refuse("logtostderr", &text, "true: the log goes to standard error, and the service manager keeps it");
        }
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

/// Has variables that are set to nothing count as unset, as Go's programs do: flags keep their defaults.
#[must_use]
pub fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command.mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg })
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
        assert_eq!(settings, Settings::default());
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            ["log-format: \"xml\"; accepted: auto, text, json or journal", "v: \"loud\"; accepted: a number such as 2"]
        );
    }

    #[test]
    fn flags_of_glog_are_read_or_named() {
        let (mut settings, mut problems) = (Settings::default(), Vec::new());
        let text = |text: &str| Some(text.to_owned());
        let flags = GlogFlags {
            vmodule: text("worker=2"),
            log_backtrace_at: text("worker.rs:97"),
            logtostderr: text("true"),
            ..GlogFlags::default()
        };
        flags.read(&mut settings, &mut problems);
        assert!(problems.is_empty() && !settings.modules.is_empty() && settings.backtrace_at.is_some());
        let flags = GlogFlags {
            vmodule: text("worker"),
            log_backtrace_at: text("worker"),
            logtostderr: text("false"),
            ..GlogFlags::default()
        };
        flags.read(&mut settings, &mut problems);
        let fields: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(fields.len(), 3, "{fields:?}");
        assert!(fields[1].starts_with("log_backtrace_at: \"worker\"; accepted: FILE:LINE"), "{fields:?}");
    }
}
