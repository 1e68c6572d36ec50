//! Go's flag package and flannel's surroundings: command lines as they were written for flanneld.
//!
//! Pure: arguments and variables in, arguments for clap out. Invariant: whatever flanneld accepts means the same here; what
//! it would leave out in silence, everything behind a word that is no flag, is returned so that it can be named.

use std::ffi::OsString;

/// What the program was started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Itself.
    Netd,
    /// `flanneld`: there are no verbs.
    Flanneld,
    /// `mk-docker-opts.sh`, flannel's script: its letters stand for [`super::verbs::Verb::DockerOpts`].
    DockerOpts,
}

impl Role {
    /// By the name that it was started under.
    #[must_use]
    pub(crate) fn of(program: &str) -> Self {
        match program.rsplit('/').next() {
            Some("flanneld") => Self::Flanneld,
            Some("mk-docker-opts.sh" | "mk-docker-opts") => Self::DockerOpts,
            _ => Self::Netd,
        }
    }
}

/// A flag that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its name without dashes.
    pub name: String,
    /// Its value may be the next word; that of a switch stands behind `=`.
    pub takes_word: bool,
}

/// What the service files of older distributions (CentOS, Fedora, Atomic) had in the environment, as the wrapper
/// `flanneld-start` put it on the command line. The earlier name is used when the later one is not set.
#[must_use]
pub(crate) fn older_arguments(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let endpoints = variable("FLANNEL_ETCD_ENDPOINTS").or_else(|| variable("FLANNEL_ETCD"));
    let prefix = variable("FLANNEL_ETCD_PREFIX").or_else(|| variable("FLANNEL_ETCD_KEY"));
    let mut arguments = Vec::new();
    arguments.extend(endpoints.map(|value| format!("--etcd-endpoints={value}")));
    arguments.extend(prefix.map(|value| format!("--etcd-prefix={value}")));
    arguments.extend(words(&variable("FLANNEL_OPTIONS").unwrap_or_default()));
    arguments
}

/// The words of a variable as systemd cuts it: at white space, quotes keep words together.
#[must_use]
pub(crate) fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in text.chars() {
        match quote {
            Some(end) if letter == end => quote = None,
            Some(_) => word.get_or_insert_default().push(letter),
            None if letter == '"' || letter == '\'' => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// Flags with two dashes, whether they were written with one or two; `--version=true` as the flag that it is.
#[must_use]
pub(crate) fn two_dashes(arg: OsString, flags: &[Known]) -> OsString {
    let known = |text: &str| {
        let flag = text.strip_prefix('-')?;
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let plain = matches!(name, "version" | "help");
        match value.map(boolean) {
            Some(Some(true)) if plain => Some(format!("--{name}")),
            _ if plain || flags.iter().any(|known| known.name == name) => Some(format!("--{flag}")),
            _ => None,
        }
    };
    arg.to_str().and_then(known).map_or(arg, OsString::from)
}

/// The arguments up to the first word that is neither a flag nor a flag's value, and the rest, which flanneld ignores.
#[must_use]
pub(crate) fn split_at_word(args: Vec<OsString>, flags: &[Known]) -> (Vec<OsString>, Vec<OsString>) {
    let mut takes_word = false;
    let end = args.iter().position(|arg| {
        if std::mem::take(&mut takes_word) {
            return false;
        }
        let Some(flag) = arg.to_str().and_then(|text| text.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
            return true;
        };
        let name = flag.strip_prefix('-').unwrap_or(flag);
        takes_word = flags.iter().any(|known| known.name == name && known.takes_word);
        // Two dashes alone end the flags as well.
        name.is_empty()
    });
    let mut args = args;
    let rest = end.map(|end| args.split_off(end)).unwrap_or_default();
    (args, rest)
}

/// `strconv.ParseBool`.
#[must_use]
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `strconv.ParseInt` with base 0, for numbers that are not negative.
#[must_use]
pub(crate) fn integer(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    let based = [("0x", 16), ("0b", 2), ("0o", 8), ("0", 8)];
    let digits = |digits: &str, base| {
        let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        u64::from_str_radix(digits, base).ok().filter(|_| plain)
    };
    let found = based.iter().find_map(|(mark, base)| Some((lower.strip_prefix(mark)?, *base)));
    match found.filter(|(rest, _)| !rest.is_empty()) {
        Some((rest, base)) => digits(rest, base),
        None => digits(&lower, 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Vec<Known> {
        let known = |name: &str, takes_word| Known { name: name.to_owned(), takes_word };
        vec![known("iface", true), known("ip-masq", false), known("v", true), known("vmodule", true)]
    }

    #[test]
    fn roles_go_by_the_name_of_the_file() {
        for (program, role) in [
            ("/usr/bin/flanneld", Role::Flanneld),
            ("flanneld", Role::Flanneld),
            ("/opt/flanneld/netd", Role::Netd),
            ("netd", Role::Netd),
            ("", Role::Netd),
            ("/usr/libexec/flannel/mk-docker-opts.sh", Role::DockerOpts),
        ] {
            assert_eq!(Role::of(program), role, "{program}");
        }
    }

    #[test]
    fn variables_of_older_service_files_are_arguments() {
        let read = |pairs: &[(&str, &str)]| {
            older_arguments(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(
            read(&[
                ("FLANNEL_ETCD_ENDPOINTS", "http://10.4.7.12:2379"),
                ("FLANNEL_ETCD", "http://x:4001"),
                ("FLANNEL_ETCD_PREFIX", "/atomic.io/network"),
                ("FLANNEL_OPTIONS", " -iface=eth0  --iface 'eth 1' -ip-masq=\"true\" "),
            ]),
            [
                "--etcd-endpoints=http://10.4.7.12:2379",
                "--etcd-prefix=/atomic.io/network",
                "-iface=eth0",
                "--iface",
                "eth 1",
                "-ip-masq=true"
            ]
        );
        assert_eq!(
            read(&[("FLANNEL_ETCD", "http://x:4001"), ("FLANNEL_ETCD_KEY", "/a"), ("FLANNEL_ETCD_PREFIX", "")]),
            ["--etcd-endpoints=http://x:4001", "--etcd-prefix=/a"]
        );
        assert_eq!(read(&[]), Vec::<String>::new());
    }

    #[test]
    fn known_flags_get_two_dashes_and_others_stay() {
        for (arg, read) in [
            ("-iface=x", "--iface=x"),
            ("--iface", "--iface"),
            ("-v=2", "--v=2"),
            ("-vmodule=a=1", "--vmodule=a=1"),
            ("-version", "--version"),
            ("--version=true", "--version"),
            ("-help", "--help"),
            ("-x", "-x"),
            ("-", "-"),
            ("iface", "iface"),
        ] {
            assert_eq!(two_dashes(arg.into(), &flags()), read, "{arg}");
        }
    }

    #[test]
    fn flanneld_reads_up_to_the_first_word() {
        let split = |text: &str| {
            let (args, rest) = split_at_word(text.split(' ').map(OsString::from).collect(), &flags());
            (args.len(), rest.len())
        };
        assert_eq!(split("-iface eth0 -ip-masq -v 2"), (5, 0));
        assert_eq!(split("-ip-masq true -iface eth0"), (1, 3));
        assert_eq!(split("--iface=eth0 status"), (1, 1));
        assert_eq!(split("-- -iface=eth0"), (0, 2));
        assert_eq!(split("-iface - -v"), (3, 0));
        assert_eq!(split(""), (0, 1), "an empty word is one");
    }

    #[test]
    fn numbers_are_gos() {
        for (text, number) in [
            ("60", Some(60)),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("0b11", Some(3)),
            ("0o17", Some(15)),
            ("0", Some(0)),
            ("+5", Some(5)),
            ("-5", None),
            ("", None),
            ("0x", None),
            ("1.5", None),
            ("0x+1", None),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
    }
}
