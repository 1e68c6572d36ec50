//! `conditionsV4` and `conditionsV6` of portmap: what must hold of a packet for a network's host ports to be open to it.
//!
//! Tokens of the nft language, joined by spaces, as portmap's nftables backend executor them to nft. Accepted, one after
//! the other:
//!
//! ```text
//! ip saddr|daddr          [!=] ADDRESS[/LENGTH]     conditionsV4; ip6 in conditionsV6
//! [meta] iifname|oifname  [!=] NAME                 iif and oif count as iifname and oifname
//! meta mark               [!=] NUMBER
//! meta l4proto            [!=] tcp|udp|sctp
//! tcp|udp|sctp sport|dport [!=] PORT
//! ```
//! with a list `{ a, b }` in place of any value. Invariant: anything else is refused by the token that is not
//! understood; no condition is left out or taken for another one.

use std::iter::Peekable;
use std::str::FromStr;
use std::vec::IntoIter;

use netstate::nft::{Match, Op};
use netstate::{IfName, IpFamily, Prefix, Protocol};

use crate::protocol::error::CniError;
use crate::protocol::fields::{Fields, unsupported};

/// The most alternatives that lists may multiply to: each is a rule.
const ALTERNATIVES_MAX: usize = 64;

/// What the error says is accepted.
const ACCEPTED: &str = "accepted are nft's \"ip saddr\", \"ip daddr\" (ip6 in conditionsV6), iifname, oifname, \"meta mark\", \
                        \"meta l4proto\", and tcp, udp or sctp with sport or dport, each with != if need be and a value or \
                        a list { a, b }";

/// The conditions of one family: one of the alternatives must hold, and of it all.
pub(crate) type Alternatives = Vec<Vec<Match>>;

/// Conditions of both families; none where there is no alternative.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// For packets over IPv4.
    pub v4: Alternatives,
    /// For packets over IPv6.
    pub v6: Alternatives,
}

impl Conditions {
    /// Takes both out of `fields`.
    ///
    /// # Errors
    /// Code 2 naming the token that is not honoured, 7 for a field that is no array of texts.
    pub fn take(fields: &mut Fields) -> Result<Self, CniError> {
        let mut of = |key: &str, family| {
            let path = fields.path_of(key);
            parse(&fields.take_texts(key)?, family, &path)
        };
        Ok(Self { v4: of("conditionsV4", IpFamily::V4)?, v6: of("conditionsV6", IpFamily::V6)? })
    }

    /// Those of a family.
    #[must_use]
    pub fn of(&self, family: IpFamily) -> &Alternatives {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }
}

fn parse(tokens: &[String], family: IpFamily, path: &str) -> Result<Alternatives, CniError> {
    let refuse = |token: &str| unsupported(path, &format!("{token:?}")).details(ACCEPTED);
    if let Some(first) = tokens.first().filter(|first| first.starts_with(['-', '!'])) {
        return Err(refuse(first).details("this is iptables' language; host ports are nftables only"));
    }
    // Lists may be given as one token or as many.
    let text = tokens.join(" ").replace('{', " { ").replace('}', " } ").replace(',', " , ");
    let words: Vec<String> = text.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
    let mut words = Words { rest: words.into_iter().peekable(), family };
    let mut alternatives: Alternatives = Vec::new();
    while words.rest.peek().is_some() {
        let one = words.condition().map_err(|token| refuse(&token))?;
        alternatives = multiply(&alternatives, &one);
        if alternatives.len() > ALTERNATIVES_MAX {
            let many = format!("lists with more than {ALTERNATIVES_MAX} combinations");
            return Err(unsupported(path, &many).details(ACCEPTED));
        }
    }
    Ok(alternatives)
}

fn multiply(before: &Alternatives, one: &Alternatives) -> Alternatives {
    if before.is_empty() {
        return one.clone();
    }
    before.iter().flat_map(|head| one.iter().map(move |tail| [head.as_slice(), tail.as_slice()].concat())).collect()
}

struct Words {
    rest: Peekable<IntoIter<String>>,
    family: IpFamily,
}

/// The token that is not understood.
type Refused = String;

impl Words {
    fn next(&mut self) -> Result<String, Refused> {
        self.rest.next().ok_or_else(|| "the end, where more was expected".to_owned())
    }

    /// One condition, as alternatives: a list makes several, an inverted one a conjunction.
    fn condition(&mut self) -> Result<Alternatives, Refused> {
        let first = self.next()?;
        let header = if self.family.is_v4() { "ip" } else { "ip6" };
        let subject = if first == "meta" { self.next()? } else { first.clone() };
        match subject.as_str() {
            word if word == header && first != "meta" => self.address(),
            "iifname" | "iif" => self.values(|op, value| link(value).map(|name| Match::Iifname(op, name))),
            "oifname" | "oif" => self.values(|op, value| link(value).map(|name| Match::Oifname(op, name))),
            "mark" if first == "meta" => {
                self.values(|op, value| number(value).map(|mark| Match::Mark(op, u32::MAX, mark)))
            }
            "l4proto" if first == "meta" => {
                self.values(|op, value| protocol(value).map(|protocol| Match::L4Proto(op, protocol)))
            }
            word => match protocol(word).filter(|_| first != "meta") {
                Some(protocol) => self.port(protocol),
                None => Err(subject),
            },
        }
    }

    fn address(&mut self) -> Result<Alternatives, Refused> {
        let (side, family) = (self.next()?, self.family);
        let prefix = |value: &str| {
            let prefix = value.parse().ok().map(Prefix::host).or_else(|| Prefix::from_str(value).ok());
            prefix.filter(|prefix| prefix.family() == family)
        };
        match side.as_str() {
            "saddr" => self.values(|op, value| prefix(value).map(|prefix| Match::Saddr(op, prefix))),
            "daddr" => self.values(|op, value| prefix(value).map(|prefix| Match::Daddr(op, prefix))),
            _ => Err(side),
        }
    }

    fn port(&mut self, protocol: Protocol) -> Result<Alternatives, Refused> {
        let side = self.next()?;
        match side.as_str() {
            "sport" => self.values(|op, value| value.parse().ok().map(|port| Match::Sport(op, protocol, port))),
            "dport" => self.values(|op, value| value.parse().ok().map(|port| Match::Dport(op, protocol, port))),
            _ => Err(side),
        }
    }

    fn values(&mut self, make: impl Fn(Op, &str) -> Option<Match>) -> Result<Alternatives, Refused> {
        let op = match self.rest.next_if(|word| matches!(word.as_str(), "!=" | "==")) {
            Some(word) if word == "!=" => Op::IsNot,
            _ => Op::Is,
        };
        let mut matches = Vec::new();
        let first = self.next()?;
        if first == "{" {
            loop {
                let value = self.next()?;
                matches.push(make(op, &value).ok_or(value)?);
                match self.next()?.as_str() {
                    "," => {}
                    "}" => break,
                    other => return Err(other.to_owned()),
                }
            }
        } else {
            matches.push(make(op, &first).ok_or(first)?);
        }
        Ok(match op {
            Op::Is => matches.into_iter().map(|one| vec![one]).collect(),
            Op::IsNot => vec![matches],
        })
    }
}

/// A link's name; sets, variables and wildcards are written like one.
fn link(word: &str) -> Option<IfName> {
    if word.starts_with(['@', '$']) || word.contains('*') { None } else { IfName::new(word).ok() }
}

fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.to_string() == word)
}

fn number(word: &str) -> Option<u32> {
    word.strip_prefix("0x").map_or_else(|| word.parse().ok(), |digits| u32::from_str_radix(digits, 16).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::json;

    fn take(key: &str, tokens: &[&str]) -> Result<Conditions, CniError> {
        Conditions::take(&mut Fields::of(json!({ key: tokens }), "").unwrap())
    }

    /// Each alternative as the nft tool would show it.
    fn text(alternatives: &Alternatives) -> Vec<String> {
        use netstate::nft::{Chain, Family, Name, Rule, Ruleset, TableKey};
        let rules = alternatives.iter().map(|all| all.iter().cloned().fold(Rule::new(), Rule::when)).collect();
        let mut ruleset = Ruleset::new(TableKey { family: Family::Inet, name: Name::literal("t") });
        ruleset.table.chains.insert(Name::literal("c"), Chain::regular(rules));
        let text = ruleset.render();
        let lines = text.lines().filter_map(|line| line.strip_prefix("\t\t"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn accepted_forms_mean_what_nft_means_by_them() {
        for (tokens, expected) in [
            (&["ip", "saddr", "10.0.0.0/8"][..], &["ip saddr 10.0.0.0/8"][..]),
            (&["ip saddr != 10.0.0.1"], &["ip saddr != 10.0.0.1"]),
            (&["ip", "daddr", "{ 10.0.0.1,", "10.0.0.2 }"], &["ip daddr 10.0.0.1", "ip daddr 10.0.0.2"]),
            (
                &["ip", "saddr", "!=", "{", "10.0.0.1", ",", "10.1.0.0/16", "}"],
                &["ip saddr != 10.0.0.1 ip saddr != 10.1.0.0/16"],
            ),
            (&["iifname", "\"eth0\"", "tcp", "dport", "==", "80"], &["iifname \"eth0\" tcp dport 80"]),
            (&["meta oifname != eth1"], &["oifname != \"eth1\""]),
            (&["iif", "lo"], &["iifname \"lo\""]),
            (&["meta", "mark", "0x10"], &["meta mark 0x00000010"]),
            (
                &["meta l4proto { tcp, udp } udp sport 53"],
                &["meta l4proto tcp udp sport 53", "meta l4proto udp udp sport 53"],
            ),
            (&[], &[]),
        ] {
            assert_eq!(text(&take("conditionsV4", tokens).unwrap().v4), expected, "{tokens:?}");
        }
        let v6 = take("conditionsV6", &["ip6", "saddr", "fd00::/64"]).unwrap();
        assert_eq!((text(&v6.v6), v6.v4.len()), (vec!["ip6 saddr fd00::/64".to_owned()], 0));
    }

    #[test]
    fn anything_else_is_refused_by_its_token() {
        for (key, tokens, token) in [
            ("conditionsV4", &["-s", "10.0.0.0/8"][..], "-s"),
            ("conditionsV4", &["!", "-s", "10.0.0.0/8"], "!"),
            ("conditionsV4", &["ip6", "saddr", "fd00::1"], "ip6"),
            ("conditionsV6", &["ip", "saddr", "10.0.0.1"], "ip"),
            ("conditionsV4", &["ip", "saddr", "fd00::1"], "fd00::1"),
            ("conditionsV4", &["ip", "saddr", "10.0.0.1-10.0.0.9"], "10.0.0.1-10.0.0.9"),
            ("conditionsV4", &["ip", "ttl", "3"], "ttl"),
            ("conditionsV4", &["ip", "saddr"], "the end"),
            ("conditionsV4", &["ip", "saddr", "{", "}"], "}"),
            ("conditionsV4", &["ip", "saddr", "{", "10.0.0.1", "10.0.0.2", "}"], "10.0.0.2"),
            ("conditionsV4", &["tcp", "dport", "80-90"], "80-90"),
            ("conditionsV4", &["icmp", "type", "echo-request"], "icmp"),
            ("conditionsV4", &["tcp", "flags", "syn"], "flags"),
            ("conditionsV4", &["iifname", "@links"], "@links"),
            ("conditionsV4", &["iifname", "eth*"], "eth*"),
            ("conditionsV4", &["meta", "tcp", "dport", "80"], "tcp"),
            ("conditionsV4", &["ip", "saddr", "10.0.0.1", "drop"], "drop"),
            ("conditionsV4", &["ip saddr 10.0.0.1; flush ruleset"], "10.0.0.1;"),
        ] {
            let error = take(key, tokens).unwrap_err();
            assert!(error.code == Code::UnsupportedField && error.msg.contains(key), "{tokens:?}: {error}");
            assert!(error.to_string().contains(token), "{tokens:?}: {error}");
        }
        let ports = (1..=9).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        let many = format!("tcp dport {{ {ports} }} tcp sport {{ {ports} }}");
        assert!(take("conditionsV4", &[&many]).unwrap_err().to_string().contains("64"), "bounded");
    }
}
