//! One field of kube-proxy's configuration: its name in a file and on a command line, its form, and what becomes of it.
//!
//! Invariant: a value is the text that the flag would have; lists are separated by commas, maps are `name=value`.

use std::net::IpAddr;

use netstate::Prefix as Network;

use crate::command::duration;
use crate::plan::here::NodePorts;

/// One field; see the module's text.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its place in a KubeProxyConfiguration: `ipvs.tcpTimeout`.
    pub(crate) path: &'static str,
    /// Its flag without the dashes; empty where there is none.
    pub(crate) flag: &'static str,
    /// What a value looks like.
    pub(crate) form: Form,
    /// kube-proxy's default.
    pub(crate) default: &'static str,
    /// What this program does with it.
    pub(crate) served: Served,
    /// What it means, for the help; empty where `served` says it.
    pub(crate) help: &'static str,
}

impl Field {
    /// The field with words for the help.
    pub(crate) const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }
}

/// What this program does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// It is read at the start; a change in the file takes a new start, and why.
    Start(&'static str),
    /// It is read at the start, and followed while the daemon runs.
    Live,
    /// Nothing has to be done for it, and why.
    Needless(&'static str),
    /// Nothing is done for it, and what happens instead: whoever sets it is warned.
    Missing(&'static str),
    /// A value other than these is refused, because packets would go elsewhere than asked for; and why.
    Only(&'static [&'static str], &'static str),
}

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Any text.
    Text,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Number { least: i64, most: i64 },
    /// A number, perhaps with a fraction.
    Rate,
    /// A time such as `30s`.
    Time,
    /// The same, or a number of nanoseconds.
    TimeOrNanoseconds,
    /// A quantity of Kubernetes, text or number.
    Quantity,
    /// An address.
    Address,
    /// An address and a port, `ADDRESS:PORT`.
    Endpoint,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Networks, as one text with commas.
    Networks,
    /// Networks, as a list.
    NetworkList,
    /// Networks, or one word that stands for some, as a list.
    NodeAddresses,
    /// Feature gates: a map to switches.
    Gates,
    /// Detail of single modules of the log: a list of `filePattern` and `verbosity`.
    Modules,
}

impl Form {
    /// Checks the text of a value.
    ///
    /// # Errors
    /// What is accepted.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        let each = |is_right: fn(&str) -> bool| text.split(',').filter(|word| !word.is_empty()).all(is_right);
        let is_network = |word: &str| word.parse::<Network>().is_ok();
        let is_right = match self {
            Self::Text | Self::Quantity | Self::Modules => true,
            Self::Switch => matches!(text, "true" | "false"),
            Self::Number { least, most } => text.parse().is_ok_and(|number: i64| (least..=most).contains(&number)),
            Self::Rate => text.parse().is_ok_and(f32::is_finite),
            Self::Time => duration::parse(text).is_some(),
            Self::TimeOrNanoseconds => duration::parse(text).is_some() || text.parse::<u64>().is_ok(),
            Self::Address => text.parse::<IpAddr>().is_ok(),
            // Their ports are the program's to add.
            Self::Endpoint => true,
            Self::OneOf(words) => words.contains(&text),
            Self::Networks | Self::NetworkList => each(is_network),
            Self::NodeAddresses => NodePorts::parse(text).is_ok(),
            Self::Gates => each(|word| matches!(word.split_once('='), Some((_, "true" | "false")))),
        };
        if is_right { Ok(()) } else { Err(self.accepted()) }
    }

    /// What is accepted, in words.
    pub(crate) fn accepted(self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::Number { least, most } => format!("a number from {least} to {most}"),
            Self::Rate => "a number such as 5".to_owned(),
            Self::Time => "a time such as 30s, 15m or 1h30m".to_owned(),
            Self::TimeOrNanoseconds => "a time such as 5s, or a number of nanoseconds".to_owned(),
            Self::Quantity => "a quantity such as 4Ki".to_owned(),
            Self::Address => "an address such as 0.0.0.0 or ::".to_owned(),
            Self::Endpoint => "ADDRESS:PORT such as 127.0.0.1:10249".to_owned(),
            Self::OneOf(words) => {
                let words: Vec<_> = words.iter().map(|word| if word.is_empty() { "\"\"" } else { word }).collect();
                words.join(", ")
            }
            Self::Networks => "networks such as 172.7.0.0/16, separated by commas".to_owned(),
            Self::NetworkList => "a list of networks such as 172.7.0.0/16".to_owned(),
            Self::NodeAddresses => NodePorts::ACCEPTED.to_owned(),
            Self::Gates => "names with true or false".to_owned(),
            Self::Modules => "a list of filePattern and verbosity".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_accepted_by_their_form() {
        let port = Form::Number { least: 0, most: 31 };
        for (form, good, bad) in [
            (Form::Switch, vec!["true", "false"], vec!["", "yes", "True"]),
            (port, vec!["0", "31"], vec!["32", "-1", "1.5", ""]),
            (Form::Rate, vec!["5", "0.5"], vec!["much", "NaN", ""]),
            (Form::Time, vec!["0s", "1h30m"], vec!["15", "soon", ""]),
            (Form::TimeOrNanoseconds, vec!["5s", "5000000000"], vec!["soon"]),
            (Form::Address, vec!["::", "10.4.7.21"], vec!["here", "10.4.7.21:80"]),
            (Form::OneOf(&["", "ipvs"]), vec!["", "ipvs"], vec!["iptables"]),
            (Form::Networks, vec!["", "172.7.0.0/16,fd00::/48"], vec!["172.7.0.0/33", "pods"]),
            (Form::NodeAddresses, vec!["primary", "10.4.7.0/24"], vec!["secondary", "primary,10.4.7.0/24"]),
            (Form::Gates, vec!["", "A=true,B=false"], vec!["A", "A=1"]),
        ] {
            for text in good {
                assert_eq!(form.check(text), Ok(()), "{form:?} {text:?}");
            }
            for text in bad {
                assert_eq!(form.check(text), Err(form.accepted()), "{form:?} {text:?}");
            }
        }
        assert_eq!(Form::OneOf(&["", "ipvs"]).accepted(), "\"\", ipvs");
    }
}
