//! The chains of iptables-legacy that a packet for this host meets, followed with one of which some is known: those before its
//! routing, and INPUT. The table `nat` denies nothing; what it sends elsewhere is not followed.
//!
//! Invariants: what is not known of a packet or not understood of a condition is open, and a verdict behind something open that may have
//! accepted the packet is no finding; each rule is read once for each way that leads to it, and [`RULES`] bound them all.

use std::fmt;

use netstate::IpFamily;

#[cfg(any(test, feature = "fuzz"))]
use super::number;
use super::rule::{Rule, Target};
use super::{ACCEPT, DEPTH, DROP, Hook, RULES, has_table, read};
use crate::error::{Cause, KernelError};
use crate::nft::arrival::Arrival;

/// What a packet for this host meets, in order, by table.
const PLACES: [Place; 5] = [
    Place { table: "raw", hook: Hook::Prerouting },
    Place { table: "mangle", hook: Hook::Prerouting },
    Place { table: "mangle", hook: Hook::Input },
    Place { table: FILTER, hook: Hook::Input },
    Place { table: "security", hook: Hook::Input },
];

/// The table that the tool means when none is named.
const FILTER: &str = "filter";

/// A chain of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    table: &'static str,
    hook: Hook,
}

/// The chains of one family that a packet for this host meets.
#[derive(Debug)]
pub struct Input {
    family: IpFamily,
    stages: Vec<Stage>,
}

/// One of them.
#[derive(Debug)]
struct Stage {
    place: Place,
    entries: Vec<u8>,
    begin: usize,
    underflow: usize,
}

/// What denies a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Denied {
    /// The family of the table.
    pub family: IpFamily,
    /// The table.
    pub table: &'static str,
    /// Its chain.
    pub chain: &'static str,
    /// The number of the rule of the chain that denies or leads to what denies, from 1, as `--line-numbers` shows it; `None` for
    /// the policy.
    pub rule: Option<u32>,
}

impl Denied {
    /// The tool with the table that it is to change.
    #[must_use]
    pub fn command(&self) -> String {
        let command = if self.family == IpFamily::V4 { "iptables-legacy" } else { "ip6tables-legacy" };
        if self.table == FILTER { command.to_owned() } else { format!("{command} -t {}", self.table) }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, chain) = (self.command(), self.chain);
        match self.rule {
            None => write!(f, "the policy of {command} {chain}"),
            Some(number) => write!(f, "rule {number} of {command} {chain}"),
        }
    }
}

impl Input {
    /// Reads those of the tables that are there.
    ///
    /// # Errors
    /// When the kernel refuses, for want of CAP_NET_ADMIN say, or its answer cannot be read.
    pub fn of(family: IpFamily) -> Result<Self, KernelError> {
        let mut stages = Vec::new();
        for place in PLACES.into_iter().filter(|place| has_table(family, place.table)) {
            let Place { table, hook } = place;
            let object = || format!("chain {} of iptables-legacy's table {table}", hook.chain());
            let (info, entries) =
                read(family, table).map_err(|source| KernelError::io("read", object(), "getsockopt", source))?;
            let short = || KernelError::new("read", object(), Cause::Unexpected("a table without it".to_owned()));
            let (begin, underflow) = hook.places(&info).ok_or_else(short)?;
            stages.push(Stage { place, entries, begin, underflow });
        }
        Ok(Self { family, stages })
    }

    /// What denies a first packet like `arrival`, if something certainly does.
    #[must_use]
    pub fn denied(&self, arrival: &Arrival) -> Option<Denied> {
        self.stages.iter().find_map(|stage| {
            let mut walk = Walk { family: self.family, stage, arrival, left: RULES, open: false };
            match walk.chain(stage.begin, DEPTH)? {
                End::Denied(rule) if !walk.open => {
                    let (table, chain) = (stage.place.table, stage.place.hook.chain());
                    Some(Denied { family: self.family, table, chain, rule })
                }
                End::Denied(_) | End::Accepted | End::Left => None,
            }
        })
    }

    /// True when the table `filter` has a chain of this name.
    #[must_use]
    pub fn has_chain(&self, name: &str) -> bool {
        // A chain begins with a rule whose target `ERROR` has its name as data.
        let wanted = [name.as_bytes(), b"\0"].concat();
        let filter = self.stages.iter().find(|stage| stage.place.table == FILTER);
        filter.is_some_and(|stage| stage.entries.windows(wanted.len()).any(|bytes| bytes == wanted))
    }
}

/// How a chain ends for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Accepted,
    /// By the rule of this number; `None` by the policy.
    Denied(Option<u32>),
    Left,
}

struct Walk<'a> {
    family: IpFamily,
    stage: &'a Stage,
    arrival: &'a Arrival,
    /// Rules that may still be read.
    left: u32,
    /// Something may have accepted the packet before.
    open: bool,
}

impl Walk<'_> {
    /// Follows the chain that begins at `at`; `None` when it cannot be read.
    fn chain(&mut self, mut at: usize, depth: u32) -> Option<End> {
        let mut line = 0_u32;
        while at < self.stage.entries.len() {
            self.left = self.left.checked_sub(1)?;
            line = line.saturating_add(1);
            let rule = Rule::read(self.family, self.stage.entries.get(at..)?)?;
            let matches = rule.matches(self.arrival);
            let number = (at != self.stage.underflow).then_some(line);
            let end = if matches == Some(false) { End::Left } else { self.target(&rule, number, depth)? };
            match (end, matches) {
                (End::Left, Some(true)) if rule.returns() => return Some(End::Left),
                (End::Left, _) => {}
                (End::Accepted, None) => self.open = true,
                (End::Denied(_), None) => {}
                (end, _) => return Some(end),
            }
            at = at.checked_add(rule.length)?;
        }
        Some(End::Left)
    }

    /// What becomes of a packet that the rule with this number concerns.
    fn target(&mut self, rule: &Rule, number: Option<u32>, depth: u32) -> Option<End> {
        Some(match rule.target {
            Target::Verdict(DROP) | Target::Denial => End::Denied(number),
            Target::Verdict(ACCEPT) => End::Accepted,
            Target::Verdict(to @ 0..) if depth > 0 => match self.chain(usize::try_from(to).ok()?, depth - 1)? {
                End::Denied(_) => End::Denied(number),
                end => end,
            },
            Target::Verdict(_) | Target::Passing => End::Left,
            // It may do anything.
            Target::Other => {
                self.open = true;
                End::Left
            }
        })
    }
}

/// A table whose INPUT begins and has its policy where the first eight bytes say.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz_input(input: &[u8]) {
    let (Some(begin), Some(underflow), Some(entries)) = (number(input, 0), number(input, 4), input.get(8..)) else {
        return;
    };
    for (family, own) in [(IpFamily::V4, "10.4.7.21"), (IpFamily::V6, "fd00::21")] {
        let Ok(to) = own.parse() else { continue };
        let Ok(name) = "eth0".parse() else { continue };
        let place = Place { table: FILTER, hook: Hook::Input };
        let stages = vec![Stage { place, entries: entries.to_vec(), begin, underflow }];
        let table = Input { family, stages };
        let arrival = Arrival { link: (name, 2), from: Some(to), to, protocol: 17, port: Some(8472) };
        let _ = table.denied(&arrival);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ANY, entry};
    use super::*;

    const NODES: &str = "10.4.7.0/24";
    const OTHERS: &str = "10.9.9.0/24";

    /// Chains as the kernel gives them: the last rule of each is its policy.
    fn input(chains: &[(Place, Vec<Vec<u8>>)]) -> Input {
        let stage = |(place, rules): &(Place, Vec<Vec<u8>>)| {
            let underflow = rules.iter().rev().skip(1).map(Vec::len).sum();
            Stage { place: *place, entries: rules.concat(), begin: 0, underflow }
        };
        Input { family: IpFamily::V4, stages: chains.iter().map(stage).collect() }
    }

    /// The first packet of another node to the tunnel's port.
    fn arrival() -> Arrival {
        let (from, to) = ("10.4.7.22".parse().unwrap(), "10.4.7.21".parse().unwrap());
        Arrival { link: ("eth0".parse().unwrap(), 2), from: Some(from), to, protocol: 17, port: Some(8472) }
    }

    fn denied(chains: &[(Place, Vec<Vec<u8>>)]) -> Option<String> {
        input(chains).denied(&arrival()).map(|denied| denied.to_string())
    }

    fn accepts() -> Vec<u8> {
        entry(ANY, ANY, None, ("", ACCEPT))
    }

    fn drops(from: &str) -> Vec<u8> {
        entry(from, ANY, None, ("", DROP))
    }

    const LAST: Place = Place { table: FILTER, hook: Hook::Input };

    #[test]
    fn first_chain_on_the_way_that_denies_is_named_with_its_table() {
        let open: Vec<_> = PLACES.into_iter().map(|place| (place, vec![accepts()])).collect();
        assert_eq!(denied(&open), None);
        let names = [
            "rule 2 of iptables-legacy -t raw PREROUTING",
            "rule 2 of iptables-legacy -t mangle PREROUTING",
            "rule 2 of iptables-legacy -t mangle INPUT",
            "rule 2 of iptables-legacy INPUT",
            "rule 2 of iptables-legacy -t security INPUT",
        ];
        let mut chains = open;
        // From the last one on: each that comes before it is met first.
        for (place, name) in names.into_iter().enumerate().rev() {
            chains[place].1 = vec![drops(OTHERS), drops(NODES), accepts()];
            assert_eq!(denied(&chains).as_deref(), Some(name));
        }
        // What an earlier chain accepts the later ones judge all the same.
        chains[0].1 = vec![accepts()];
        assert_eq!(denied(&chains).as_deref(), Some(names[1]));
    }

    #[test]
    fn policy_is_named_as_one_and_what_is_open_is_no_finding() {
        let policy = || vec![drops(ANY)];
        assert_eq!(denied(&[(LAST, policy())]).as_deref(), Some("the policy of iptables-legacy INPUT"));
        let with = |rule: Vec<u8>| denied(&[(LAST, [vec![rule], policy()].concat())]);
        assert_eq!(with(entry(NODES, ANY, None, ("", ACCEPT))), None);
        assert_eq!(with(entry(ANY, ANY, Some("limit"), ("", ACCEPT))), None, "it may accept");
        assert_eq!(with(entry(ANY, ANY, None, ("TPROXY", 0))), None, "it may do anything");
        for rule in [
            entry(OTHERS, ANY, None, ("", ACCEPT)),
            entry(ANY, OTHERS, None, ("", ACCEPT)),
            entry(ANY, ANY, Some("limit"), ("", DROP)),
            entry(ANY, ANY, None, ("LOG", 0)),
        ] {
            assert_eq!(with(rule).as_deref(), Some("the policy of iptables-legacy INPUT"));
        }
        assert_eq!(with(entry(ANY, ANY, None, ("REJECT", 0))).as_deref(), Some("rule 1 of iptables-legacy INPUT"));
        // What is open in one chain says nothing of another one.
        let limited = vec![entry(ANY, ANY, Some("limit"), ("", ACCEPT)), accepts()];
        let raw = Place { table: "raw", hook: Hook::Prerouting };
        let found = denied(&[(raw, limited), (LAST, policy())]);
        assert_eq!(found.as_deref(), Some("the policy of iptables-legacy INPUT"));
    }

    #[test]
    fn tool_is_named_by_family_and_table() {
        let of = |family, table| Denied { family, table, chain: "INPUT", rule: None }.command();
        assert_eq!(of(IpFamily::V4, FILTER), "iptables-legacy");
        assert_eq!(of(IpFamily::V6, FILTER), "ip6tables-legacy");
        assert_eq!(of(IpFamily::V6, "mangle"), "ip6tables-legacy -t mangle");
    }

    #[test]
    fn torn_chains_and_loops_end_without_a_finding_that_is_none() {
        let rules = [entry(ANY, ANY, None, ("", 0)), drops(ANY)];
        assert_eq!(denied(&[(LAST, vec![rules[0].clone(); 2])]), None, "each leads to the first");
        let whole = rules.concat();
        for length in 0..whole.len() {
            let stages =
                vec![Stage { place: LAST, entries: whole[..length].to_vec(), begin: 0, underflow: rules[0].len() }];
            let torn = Input { family: IpFamily::V4, stages };
            assert_eq!(torn.denied(&arrival()), None, "{length} bytes");
        }
    }
}
