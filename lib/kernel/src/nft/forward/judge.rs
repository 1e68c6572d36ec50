//! How a chain of the forward hook ends for a packet that none of its rules has decided, and where an accept belongs.
//!
//! Pure. Invariant: the place of an accept has every rule before it that may deny, and behind it nothing but the denial
//! of everything.

use std::collections::{BTreeMap, BTreeSet};

use netstate::IfName;
use netstate::family::{IpFamily, PerFamily};
use netstate::nft::{Family, Match, Name, Op, Policy};

use super::accept::{Accept, Exception};
use super::line::{Effect, Line};

/// What becomes of a packet that no rule with a condition has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It passes.
    Passes,
    /// It is denied by the rule with this index, or behind the last rule by the policy.
    Denied(usize),
    /// It is denied in another chain, whose other rules may still accept or deny it, or behind it by the policy.
    DeniedIn(Spot),
}

/// How a chain ends, for packets of which nothing is known and for those of each family: a table of both may deny one alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    any: End,
    of: PerFamily<End>,
}

impl Ends {
    /// The same for all packets.
    pub(super) fn same(end: End) -> Self {
        Self { of: PerFamily::from_fn(|_| end.clone()), any: end }
    }

    /// For packets of which nothing is known.
    pub(super) const fn any(&self) -> &End {
        &self.any
    }

    /// For what a rule accepts.
    pub(super) fn of(&self, accept: Option<&Accept>) -> &End {
        accept.and_then(Accept::family).map_or(&self.any, |family| self.of.get(family))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &End> {
        [&self.any].into_iter().chain(self.of.values())
    }

    /// The first place in another chain.
    pub(super) fn spot(&self) -> Option<&Spot> {
        self.iter().find_map(|end| if let End::DeniedIn(spot) = end { Some(spot) } else { None })
    }

    /// Each as `change` makes it.
    pub(super) fn map(&self, change: impl Fn(&End) -> End) -> Self {
        Self { any: change(&self.any), of: self.of.as_ref().map(|_, end| change(end)) }
    }
}

/// A place in a chain that the base chain leads to without a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    /// The chains on the way, the last one being that of the place.
    pub(super) path: Vec<Name>,
    /// Index of the rule that denies, or behind the last one.
    pub(super) at: usize,
}

impl Spot {
    fn here(at: usize) -> Self {
        Self { path: Vec::new(), at }
    }

    fn through(mut self, chain: &Name) -> Self {
        self.path.insert(0, chain.clone());
        self
    }
}

/// What some packets meet that have interfaces or networks of their own, when nothing has decided about them before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Zone {
    /// Where they are denied; with no chains on the way in the base chain itself.
    pub(super) spot: Spot,
    /// The conditions of the rule that denies, where it stands in a chain that others come by.
    pub(super) of: Vec<Match>,
}

impl Zone {
    fn through(self, chain: &Name) -> Self {
        Self { spot: self.spot.through(chain), ..self }
    }
}

/// A denial of packets with these interfaces or networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Index of the rule.
    pub(super) at: usize,
    /// Its conditions.
    pub(super) of: Vec<Match>,
}

impl Part {
    /// True when there may be such packets among those of `accept`.
    pub(super) fn may_concern(&self, accept: &Accept) -> bool {
        let of_family = |condition: &Match| match condition {
            Match::Nfproto(Op::Is, family) => Some(*family),
            Match::Saddr(Op::Is, network) | Match::Daddr(Op::Is, network) => Some(network.family()),
            _ => None,
        };
        let family = accept.family();
        self.of.iter().filter_map(of_family).all(|own| family.is_none_or(|family| family == own))
    }
}

/// How a chain that is jumped to ends.
#[derive(Clone)]
enum Fate {
    /// Packets go back to where they came from, at the rule with this index or behind the last one.
    Passes {
        end: usize,
        /// Some may be accepted before, or led elsewhere; else it does nothing but log and deny.
        chooses: bool,
    },
    Accepts,
    /// It does nothing but deny.
    Denies,
    /// Some packets are decided otherwise before all others are denied, there.
    DeniesRest(Spot),
    /// Packets leave the last chain on the way by its end, and come back to none.
    Leaves(Spot),
}

/// How a base chain of `family` ends, and where packets of `links` are denied in zones of their own. `chain` reads another chain of its
/// table, each once.
pub(super) fn outcome<E>(
    family: Family,
    policy: Policy,
    lines: &[Line],
    links: &BTreeSet<IfName>,
    chain: &mut dyn FnMut(&Name) -> Result<Vec<Line>, E>,
) -> Result<(Ends, Vec<Zone>), E> {
    let mut known: BTreeMap<Name, Vec<Line>> = BTreeMap::new();
    let mut chain = |name: &Name| match known.get(name) {
        Some(lines) => Ok(lines.clone()),
        None => chain(name).inspect(|lines| drop(known.insert(name.clone(), lines.clone()))),
    };
    Ok((ends(family, policy, lines, &mut chain)?, zones(lines, links, &mut chain)?))
}

/// How a base chain of `family` ends.
fn ends<E>(
    family: Family,
    policy: Policy,
    lines: &[Line],
    chain: &mut dyn FnMut(&Name) -> Result<Vec<Line>, E>,
) -> Result<Ends, E> {
    let any = end(policy, lines, chain)?;
    if family != Family::Inet {
        return Ok(Ends::same(any));
    }
    let mut of = |family| {
        let met = |lines: Vec<Line>| lines.into_iter().map(|line| line.met_by(family)).collect::<Vec<_>>();
        end(policy, &met(lines.to_vec()), &mut |name| chain(name).map(met))
    };
    let of = PerFamily::new(of(IpFamily::V4)?, of(IpFamily::V6)?);
    Ok(Ends { any, of })
}

/// How a base chain ends. `chain` reads another chain of its table, each once.
fn end<E>(policy: Policy, lines: &[Line], chain: &mut dyn FnMut(&Name) -> Result<Vec<Line>, E>) -> Result<End, E> {
    let mut chains = Chains { read: chain, fates: BTreeMap::new() };
    let by_policy = |end: End| if policy == Policy::Drop { end } else { End::Passes };
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.conditional) {
        let (name, jump) = match &line.effect {
            Effect::Nothing | Effect::Unclear | Effect::Map => continue,
            Effect::Accept => return Ok(End::Passes),
            Effect::Deny => return Ok(End::Denied(at)),
            Effect::Return => return Ok(by_policy(End::Denied(at))),
            Effect::Jump(name) => (name, true),
            Effect::Goto(name) => (name, false),
        };
        match (chains.fate(name)?, jump) {
            (Fate::Passes { .. } | Fate::Leaves(_), true) => {}
            (Fate::Passes { end, .. }, false) => return Ok(by_policy(End::DeniedIn(Spot::here(end).through(name)))),
            (Fate::Leaves(spot), false) => return Ok(by_policy(End::DeniedIn(spot.through(name)))),
            (Fate::Accepts, _) => return Ok(End::Passes),
            (Fate::Denies, _) => return Ok(End::Denied(at)),
            (Fate::DeniesRest(spot), _) => return Ok(End::DeniedIn(spot.through(name))),
        }
    }
    Ok(by_policy(End::Denied(lines.len())))
}

/// Where packets that come in by one of `links` are denied in a zone of their own, as firewalld has them: in a chain, or by a
/// rule with the same conditions behind the jump there, as of version 2.3. That denies as well what comes in by no zone's
/// interface and leaves by one. A zone that does nothing but deny is meant so.
fn zones<E>(
    lines: &[Line],
    links: &BTreeSet<IfName>,
    chain: &mut dyn FnMut(&Name) -> Result<Vec<Line>, E>,
) -> Result<Vec<Zone>, E> {
    let mut chains = Chains { read: chain, fates: BTreeMap::new() };
    chains.zones(lines, links, &mut BTreeSet::new())
}

/// The chains of a table, as far as they are known. The kernel allows as many jumps to one as there are rules, so following
/// each anew would take 4^15 listings of a table with sixteen chains of four jumps.
struct Chains<'a, E> {
    read: &'a mut dyn FnMut(&Name) -> Result<Vec<Line>, E>,
    fates: BTreeMap<Name, Fate>,
}

impl<E> Chains<'_, E> {
    /// How the chain `name` ends. The kernel refuses loops; a chain that leads to itself passes.
    fn fate(&mut self, name: &Name) -> Result<Fate, E> {
        if let Some(fate) = self.fates.get(name) {
            return Ok(fate.clone());
        }
        self.fates.insert(name.clone(), passes(&[], 0));
        let lines = (self.read)(name)?;
        let fate = self.fate_of(&lines)?;
        self.fates.insert(name.clone(), fate.clone());
        Ok(fate)
    }

    /// The zones of `links` that `lines` lead to; chains in `seen` have been followed.
    fn zones(&mut self, lines: &[Line], links: &BTreeSet<IfName>, seen: &mut BTreeSet<Name>) -> Result<Vec<Zone>, E> {
        let mut found: Vec<Zone> = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let (name, leaves) = match &line.effect {
                Effect::Jump(name) => (name, false),
                Effect::Goto(name) => (name, true),
                Effect::Accept | Effect::Deny | Effect::Return if !line.conditional => break,
                Effect::Deny if line.dispatches && self.ends_zone(lines, at, links)? => {
                    let zone = Zone { spot: Spot::here(at), of: line.conditions.clone() };
                    // A second rule with these conditions is met by no packet.
                    if found.iter().all(|other| !other.spot.path.is_empty() || other.of != zone.of) {
                        found.push(zone);
                    }
                    continue;
                }
                _ => continue,
            };
            if line.conditional && line.dispatches && line.conditions.iter().any(|condition| enters(condition, links)) {
                // What is jumped to is for some of the packets: a policy of firewalld's, whose denial is meant so.
                if leaves && let Fate::DeniesRest(spot) = self.fate(name)? {
                    found.push(Zone { spot, of: Vec::new() }.through(name));
                }
            } else if !line.conditional && seen.insert(name.clone()) {
                let lines = (self.read)(name)?;
                let inside = self.zones(&lines, links, seen)?;
                found.extend(inside.into_iter().map(|zone| zone.through(name)));
                if leaves {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// True when the denial at `at` is that of a zone that packets of ours come by: behind a jump with the same conditions, to a chain
    /// that lets some packets pass and from which the others come back. Without an interface that they come in by, it is that of the
    /// chain's own last zone.
    fn ends_zone(&mut self, lines: &[Line], at: usize, links: &BTreeSet<IfName>) -> Result<bool, E> {
        let (before, behind) = lines.split_at(at);
        let Some(Line { conditions: of, .. }) = behind.first() else { return Ok(false) };
        let leaves = |condition: &Match| {
            matches!(condition, Match::Oifname(Op::Is, _) | Match::Daddr(Op::Is, _) | Match::Nfproto(..))
        };
        if !of.iter().all(|condition| enters(condition, links) || leaves(condition)) {
            return Ok(false);
        }
        let mut zone = None;
        for line in before.iter().rev() {
            match &line.effect {
                Effect::Jump(name) if line.conditions == *of && line.dispatches => match self.fate(name)? {
                    // A denial that is logged in a chain is no default.
                    Fate::Passes { chooses: false, .. } => {}
                    Fate::Passes { .. } | Fate::Leaves(_) => zone = zone.or(Some(name)),
                    Fate::Accepts | Fate::Denies | Fate::DeniesRest(_) => return Ok(false),
                },
                Effect::Nothing => {}
                Effect::Accept if line.ours => {}
                _ => break,
            }
        }
        let Some(zone) = zone else { return Ok(false) };
        let last = |line: &Line| !line.conditional && line.effect == Effect::Jump(zone.clone());
        Ok(of.iter().any(|condition| enters(condition, links)) || behind.iter().any(last))
    }

    fn fate_of(&mut self, lines: &[Line]) -> Result<Fate, E> {
        let mut pure = true;
        let denies = |pure: bool, at: usize| if pure { Fate::Denies } else { Fate::DeniesRest(Spot::here(at)) };
        for (at, line) in lines.iter().enumerate() {
            let (name, jump) = match (&line.effect, line.conditional) {
                (Effect::Nothing, _) | (Effect::Deny, true) => continue,
                // Ours do not make a chain another one than it was.
                (Effect::Accept, true) if line.ours => continue,
                (Effect::Deny, false) => return Ok(denies(pure, at)),
                (Effect::Accept, false) => return Ok(Fate::Accepts),
                (Effect::Return, false) => return Ok(passes(lines, at)),
                (Effect::Jump(name), false) => (name, true),
                (Effect::Goto(name), false) => (name, false),
                (_, true) | (Effect::Unclear | Effect::Map, false) => {
                    pure = false;
                    continue;
                }
            };
            match self.fate(name)? {
                Fate::Passes { .. } | Fate::Leaves(_) if jump => pure = false,
                Fate::Passes { end, .. } => return Ok(Fate::Leaves(Spot::here(end).through(name))),
                Fate::Leaves(spot) => return Ok(Fate::Leaves(spot.through(name))),
                Fate::Accepts => return Ok(Fate::Accepts),
                Fate::Denies => return Ok(denies(pure, at)),
                Fate::DeniesRest(spot) => return Ok(Fate::DeniesRest(spot.through(name))),
            }
        }
        Ok(passes(lines, lines.len()))
    }
}

/// The fate of packets that go back at the rule with index `end`.
fn passes(lines: &[Line], end: usize) -> Fate {
    let chooses = |line: &Line| match line.effect {
        Effect::Nothing | Effect::Deny | Effect::Return => false,
        Effect::Accept => !line.ours,
        Effect::Jump(_) | Effect::Goto(_) | Effect::Map | Effect::Unclear => true,
    };
    Fate::Passes { end, chooses: lines.iter().take(end).any(chooses) }
}

/// True for a condition that packets which come in by one of `links` fulfil.
fn enters(condition: &Match, links: &BTreeSet<IfName>) -> bool {
    match condition {
        Match::Iifname(Op::Is, name) => links.contains(name),
        Match::IifnamePrefix(Op::Is, start) => links.iter().any(|link| link.as_str().starts_with(start.as_str())),
        _ => false,
    }
}

/// True when packets reach `path` only by way of `base` and its chains, and by no other conditions than networks and
/// interfaces, as a zone is chosen: then what is accepted at its end is denied by nothing else, at no other hook.
/// `lines` are those of the whole table.
pub(super) fn is_private(base: &Name, path: &[Name], lines: &[Line]) -> bool {
    let leads_to = |line: &Line| match &line.effect {
        Effect::Jump(target) | Effect::Goto(target) => path.contains(target),
        // A map may lead anywhere.
        Effect::Map => true,
        _ => false,
    };
    let of_path = |chain: &Name| chain == base || path.contains(chain);
    lines.iter().filter(|line| leads_to(line)).all(|line| of_path(&line.chain) && line.dispatches)
}

/// Before which rule an accept belongs when everything is denied at `denied`: what is accepted is not logged as denied.
pub(super) fn place(lines: &[Line], denied: usize) -> usize {
    let before = lines.get(..denied).unwrap_or(lines);
    let logs = before.iter().rev().take_while(|line| line.effect == Effect::Nothing && !line.ours).count();
    before.len() - logs
}

/// Index of the rule that denies what `exception` is of, or behind the last one.
pub(super) fn denied(exception: &Exception, ends: &Ends, parts: &[Part]) -> Option<usize> {
    if !exception.of.is_empty() {
        return parts.iter().find(|part| part.of == exception.of).map(|part| part.at);
    }
    if let End::Denied(at) = ends.of(Some(&exception.accept)) { Some(*at) } else { None }
}

/// What our rules accept, if they stand where they belong: behind everything that may deny, each once.
pub(super) fn accepted(lines: &[Line], ends: &Ends, parts: &[Part]) -> (BTreeSet<Exception>, bool) {
    let ours = || lines.iter().enumerate().filter(|(_, line)| line.ours);
    let accepts: BTreeSet<Exception> = ours().filter_map(|(_, line)| line.accepts.clone()).collect();
    let is_behind = |(at, line): (usize, &Line)| {
        let denied = line.accepts.as_ref().and_then(|exception| denied(exception, ends, parts)).unwrap_or(lines.len());
        let family = line.accepts.as_ref().and_then(Exception::family);
        let harmless =
            |line: &Line| line.is_harmless() || family.is_some_and(|own| line.clone().met_by(own).is_harmless());
        at < denied && lines.get(at..denied).unwrap_or_default().iter().all(harmless)
    };
    (accepts.clone(), ours().count() == accepts.len() && ours().all(is_behind))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn line(text: &str) -> Line {
        for (start, family) in [("v4 ", IpFamily::V4), ("v6 ", IpFamily::V6)] {
            if let Some(rest) = text.strip_prefix(start) {
                return Line { conditional: true, conditions: vec![Match::Nfproto(Op::Is, family)], ..line(rest) };
            }
        }
        let (conditional, rest) = text.strip_prefix("if ").map_or((false, text), |rest| (true, rest));
        let (ours, rest) = rest.strip_prefix("our ").map_or((false, rest), |rest| (true, rest));
        let name = |text: &str| Name::new(text).unwrap();
        let effect = match rest.split_once(' ').unwrap_or((rest, "")) {
            ("log", _) => Effect::Nothing,
            ("accept", _) => Effect::Accept,
            ("deny", _) => Effect::Deny,
            ("return", _) => Effect::Return,
            ("jump", chain) => Effect::Jump(name(chain.trim_end_matches(" ?"))),
            ("goto", chain) => Effect::Goto(name(chain)),
            ("map", _) => Effect::Map,
            _ => Effect::Unclear,
        };
        let network = "172.7.0.0/16".parse().unwrap();
        let conditions = if conditional { vec![Match::Saddr(Op::Is, network)] } else { Vec::new() };
        let accepts = (conditional && effect == Effect::Accept).then_some(Exception::to_all(Accept::From(network)));
        let dispatches = !rest.ends_with('?');
        Line { chain: name("c"), handle: Vec::new(), ours, conditional, dispatches, effect, conditions, accepts }
    }

    fn lines(text: &str) -> Vec<Line> {
        text.split("; ").filter(|part| !part.is_empty()).map(line).collect()
    }

    fn ends(policy: Policy, text: &str, chains: &[(&str, &str)]) -> End {
        let chains: BTreeMap<&str, &str> = chains.iter().copied().collect();
        let mut read = |name: &Name| Ok::<_, Infallible>(lines(chains.get(name.as_str()).copied().unwrap_or_default()));
        end(policy, &lines(text), &mut read).unwrap()
    }

    #[test]
    fn end_of_a_chain_is_its_policy_or_its_first_denial_of_everything() {
        let denied_in = |path: &str, at| {
            let path = path.split(' ').map(|name| Name::new(name).unwrap()).collect();
            End::DeniedIn(Spot { path, at })
        };
        let ufw: &[(&str, &str)] = &[("before", "if accept; if deny"), ("reject", "log; deny"), ("track", "")];
        let zones: &[(&str, &str)] = &[("zones", "if goto dmz; goto public"), ("public", "if accept; deny")];
        for (policy, text, chains, wanted) in [
            (Policy::Drop, "", &[][..], End::Denied(0)),
            (Policy::Accept, "if deny; if accept", &[], End::Passes),
            (Policy::Drop, "if deny; log; if accept", &[], End::Denied(3)),
            (Policy::Drop, "if deny; accept; deny", &[], End::Passes),
            (Policy::Accept, "if accept; log; deny; if deny", &[], End::Denied(2)),
            (Policy::Drop, "if accept; return; if deny", &[], End::Denied(1)),
            (Policy::Accept, "return; deny", &[], End::Passes),
            (Policy::Drop, "jump before; jump reject; jump track", ufw, End::Denied(1)),
            (Policy::Drop, "jump before; jump track", ufw, End::Denied(2)),
            (Policy::Drop, "if deny; goto track", ufw, denied_in("track", 0)),
            (Policy::Accept, "goto track; deny", ufw, End::Passes),
            (Policy::Accept, "if accept; jump zones; deny", zones, denied_in("zones public", 1)),
            (Policy::Drop, "goto left", &[("left", "if deny; return; if deny")], denied_in("left", 1)),
            (Policy::Drop, "goto one", &[("one", "goto two"), ("two", "if deny")], denied_in("one two", 1)),
            (Policy::Accept, "jump one; if deny", &[("one", "goto two"), ("two", "if deny")], End::Passes),
            (Policy::Accept, "goto one", &[("one", "jump two; deny"), ("two", "return")], denied_in("one", 1)),
            (Policy::Drop, "jump all; deny", &[("all", "log; accept")], End::Passes),
            (
                Policy::Drop,
                "jump one",
                &[("one", "jump two"), ("two", "goto three"), ("three", "deny")],
                End::Denied(0),
            ),
            // Nothing that is not understood decides about everything.
            (Policy::Drop, "queue; if accept", &[], End::Denied(2)),
        ] {
            assert_eq!(ends(policy, text, chains), wanted, "{policy:?}: {text}");
        }
    }

    #[test]
    fn zone_of_a_link_that_denies_the_rest_is_found_wherever_it_is_chosen() {
        let eth0 = BTreeSet::from([IfName::literal("eth0")]);
        let zones = |text: &str, chains: &[(&str, &str)]| {
            let chains: BTreeMap<&str, &str> = chains.iter().copied().collect();
            let by = |name: &str, line: Line| match &line.effect {
                Effect::Goto(target) | Effect::Jump(target) if line.conditional && target.as_str().ends_with(name) => {
                    Line { conditions: vec![Match::Iifname(Op::Is, IfName::new(name).unwrap())], ..line }
                }
                _ => line,
            };
            let read =
                |text: &str| lines(text).into_iter().map(|line| by("eth0", by("eth1", line))).collect::<Vec<_>>();
            let mut chain =
                |name: &Name| Ok::<_, Infallible>(read(chains.get(name.as_str()).copied().unwrap_or_default()));
            let Ok(found) = super::zones(&read(text), &eth0, &mut chain);
            let path = |zone: &Zone| zone.spot.path.iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
            found.iter().map(|zone| format!("{} {}", path(zone), zone.spot.at)).collect::<Vec<_>>()
        };
        let rest = ("for-eth0", "if accept; jump empty; deny");
        assert_eq!(zones("jump all; deny", &[("all", "if goto for-eth1; if goto for-eth0"), rest]), ["all for-eth0 2"]);
        assert_eq!(zones("if goto for-eth0", &[rest]), ["for-eth0 2"]);
        assert!(zones("if goto for-eth1", &[("for-eth1", "if accept; deny")]).is_empty(), "another link's");
        assert!(zones("if goto for-eth0", &[("for-eth0", "deny")]).is_empty(), "it is meant so");
        assert!(zones("if goto for-eth0", &[("for-eth0", "if deny; accept")]).is_empty(), "it passes");
        assert!(zones("if jump for-eth0; if goto for-eth1", &[rest]).is_empty(), "a policy, not a zone");
        assert!(zones("accept; if goto for-eth0", &[rest]).is_empty(), "no packet comes there");
        assert_eq!(zones("jump a; jump a", &[("a", "jump a; if goto for-eth0"), rest]), ["a for-eth0 2"], "once");
    }

    /// `CONDITIONS EFFECT`, the conditions being `i:LINK`, `o:LINK`, `s:NETWORK` and `d:NETWORK`.
    fn placed(text: &str) -> Line {
        let condition = |word: &str| {
            let link = |name: &str| IfName::new(name).unwrap();
            match word.split_once(':')? {
                ("i", name) if name.ends_with('*') => {
                    Some(Match::IifnamePrefix(Op::Is, link(name.trim_end_matches('*'))))
                }
                ("i", name) => Some(Match::Iifname(Op::Is, link(name))),
                ("o", name) => Some(Match::Oifname(Op::Is, link(name))),
                ("s", network) => Some(Match::Saddr(Op::Is, network.parse().unwrap())),
                ("d", network) => Some(Match::Daddr(Op::Is, network.parse().unwrap())),
                _ => None,
            }
        };
        let conditions: Vec<Match> = text.split(' ').map_while(condition).collect();
        let rest: Vec<&str> = text.split(' ').skip(conditions.len()).collect();
        Line { conditional: !conditions.is_empty() || rest[0] == "if", conditions, ..line(&rest.join(" ")) }
    }

    #[test]
    fn zone_whose_denial_stands_behind_the_jump_is_found_by_that() {
        let zone: &[(&str, &str)] =
            &[("public", "jump deny"), ("drop", "if deny; jump deny"), ("deny", ""), ("all", "log; accept")];
        let zone = [zone, &[("logs", "if log; log; return"), ("refuses", "if deny; log")]].concat();
        let links = ["eth0", "wg1"].map(|name| IfName::new(name).unwrap()).into();
        let zones = |text: &str| {
            let placed = |text: &str| text.split("; ").map(placed).collect::<Vec<_>>();
            let read = &mut |name: &Name| {
                let text = zone.iter().find(|(chain, _)| *chain == name.as_str()).map_or("", |(_, text)| text);
                Ok::<_, Infallible>(lines(text))
            };
            let Ok(found) = super::zones(&placed(text), &links, read);
            assert!(found.iter().all(|zone| zone.spot.path.is_empty() && !zone.of.is_empty()), "{found:?}");
            found.iter().map(|zone| zone.spot.at).collect::<Vec<_>>()
        };
        let all = "jump public; deny";
        assert_eq!(zones(&format!("i:eth0 jump drop; i:eth0 deny; {all}")), [1]);
        assert_eq!(zones(&format!("i:eth0 jump drop; if log; i:eth0 deny; {all}")), [2], "denials are logged");
        assert_eq!(zones(&format!("i:eth* jump drop; i:eth* deny; {all}")), [1]);
        assert_eq!(zones(&format!("o:eth0 jump public; o:eth0 deny; {all}")), [1], "in by the last zone");
        assert_eq!(zones(&format!("d:10.0.0.0/8 jump public; d:10.0.0.0/8 deny; {all}")), [1]);
        assert_eq!(
            zones(&format!("i:eth0 o:lan jump drop; i:eth0 o:lan deny; i:eth0 jump drop; i:eth0 deny; {all}")),
            [1, 3],
        );
        assert_eq!(zones(&format!("i:wg1 jump drop; i:wg1 deny; i:wg1 jump drop; i:wg1 deny; {all}")), [1]);
        for (text, why) in [
            ("i:lan jump drop; i:lan deny", "of strangers"),
            ("i:lan o:eth0 jump drop; i:lan o:eth0 deny", "of strangers"),
            ("s:10.0.0.0/8 jump drop; s:10.0.0.0/8 deny", "chosen by its source"),
            ("i:eth0 s:10.0.0.0/8 jump drop; i:eth0 s:10.0.0.0/8 deny", "chosen by its source"),
            ("i:eth0 deny", "it is meant so"),
            ("i:eth0 jump logs; i:eth0 deny", "it is meant so, and logged"),
            ("i:eth0 jump refuses; i:eth0 deny", "it does nothing but deny"),
            ("i:eth0 jump all; i:eth0 deny", "no packet comes there"),
            ("i:eth0 jump drop; o:lan deny", "another condition"),
            ("i:eth0 jump drop; i:wg1 accept; i:eth0 deny", "something stands between"),
            ("o:eth0 jump drop; o:eth0 deny", "not the last zone's"),
        ] {
            assert!(zones(&format!("{text}; {all}")).is_empty(), "{text}: {why}");
        }
        assert!(zones("o:eth0 jump public; o:eth0 deny").is_empty(), "there is no last zone");
    }

    #[test]
    fn exception_stands_before_its_own_denial_only() {
        let eth0 = || vec![Match::Iifname(Op::Is, IfName::literal("eth0"))];
        let network = "172.7.0.0/16".parse().unwrap();
        let ours =
            || Line { accepts: Some(Exception { accept: Accept::From(network), of: eth0() }), ..line("if our accept") };
        let parts = [Part { at: 2, of: eth0() }];
        let read = |mut lines: Vec<Line>, at: usize| {
            lines.insert(at, ours());
            accepted(&lines, &Ends::same(End::Passes), &parts).1
        };
        let chain = || lines("if jump zone; if deny; log");
        assert!(read(chain(), 1), "the denial with its conditions comes behind it");
        assert!(!read(chain(), 0), "what the zone denies is passed by");
        assert!(!read(chain(), 2), "no packet of the zone comes there");
        assert!(parts[0].may_concern(&Accept::From(network)) && parts[0].may_concern(&Accept::Established));
        let six = Part { at: 0, of: vec![Match::Daddr(Op::Is, "fd00::/64".parse().unwrap())] };
        assert!(!six.may_concern(&Accept::From(network)) && six.may_concern(&Accept::Established));
    }

    #[test]
    fn family_that_a_table_of_both_denies_alone_ends_there() {
        let chains: BTreeMap<&str, &str> = [("rest", "log; v4 deny; v6 accept"), ("four", "v4 return; accept")].into();
        let found = |family, policy, text: &str| {
            let mut read = |name: &Name| Ok::<_, Infallible>(lines(chains[name.as_str()]));
            let Ok(Ends { any, of }) = super::ends(family, policy, &lines(text), &mut read);
            [any, of.v4, of.v6]
        };
        let [passes, denied] = [|| End::Passes, || End::Denied(1)];
        for (policy, text, wanted) in [
            (Policy::Accept, "if accept; v4 deny; v6 deny", [passes(), denied(), End::Denied(2)]),
            (Policy::Accept, "if accept; v6 deny", [passes(), passes(), denied()]),
            (Policy::Drop, "v6 accept; deny", [denied(), denied(), passes()]),
            (Policy::Accept, "if accept; jump rest", [passes(), denied(), passes()]),
            (Policy::Drop, "jump four; if accept", [passes(), End::Denied(2), passes()]),
        ] {
            assert_eq!(found(Family::Inet, policy, text), wanted, "{text}");
        }
        let one = found(Family::Ip, Policy::Accept, "if accept; v4 deny");
        assert_eq!(one, [passes(), passes(), passes()], "a table of one family has no such condition");
        let ends = Ends { any: passes(), of: PerFamily::new(denied(), End::Denied(3)) };
        let ours = |text: &str| accepted(&lines(text), &ends, &[]).1;
        assert!(ours("if our accept; v4 deny") && !ours("v4 deny; if our accept"));
    }

    #[test]
    fn endless_jumps_end() {
        assert_eq!(ends(Policy::Accept, "jump a", &[("a", "jump b"), ("b", "jump a")]), End::Passes);
    }

    #[test]
    fn chains_that_jump_to_each_other_again_and_again_are_read_once() {
        let mut read = 0;
        let outcome = end(Policy::Drop, &lines("jump c0"), &mut |name| {
            read += 1;
            assert!(read <= 16, "chains are read {read} times");
            let next = name.as_str()[1..].parse::<u8>().unwrap() + 1;
            let text = if next < 16 { vec![format!("jump c{next}"); 8].join("; ") } else { "if accept".to_owned() };
            Ok::<_, Infallible>(lines(&text))
        });
        assert_eq!((outcome, read), (Ok(End::Denied(1)), 16));
    }

    #[test]
    fn chain_is_private_when_nothing_but_its_base_chain_leads_there() {
        let path = ["zones", "public"].map(|name| Name::new(name).unwrap());
        let base = Name::new("base").unwrap();
        let private = |table: &[(&str, &str)]| {
            let of = |(chain, text): &(&str, &str)| {
                let chain = Name::new(*chain).unwrap();
                lines(text).into_iter().map(|line| Line { chain: chain.clone(), ..line }).collect::<Vec<_>>()
            };
            is_private(&base, &path, &table.iter().flat_map(of).collect::<Vec<_>>())
        };
        let (own, zones) = (("base", "if accept; jump zones; deny"), ("zones", "if goto public; goto public"));
        assert!(private(&[own, zones, ("input", "jump others; queue"), ("public", "if accept; deny")]));
        assert!(!private(&[own, zones, ("input", "goto public")]), "a chain of another hook leads there");
        assert!(!private(&[own, zones, ("public", "if jump zones ?")]), "under a condition that is no zone's");
        assert!(!private(&[own, zones, ("input", "if map")]), "a map may lead there");
    }

    #[test]
    fn accept_belongs_behind_every_denial_and_before_the_last_ones_log() {
        assert_eq!(place(&lines("if deny; log; deny"), 2), 1);
        assert_eq!(place(&lines("if deny; if log; log"), 3), 1);
        assert_eq!(place(&lines("jump x; if deny"), 2), 2);
        assert_eq!(place(&[], 0), 0);
    }

    #[test]
    fn own_rules_are_in_place_while_nothing_behind_them_may_deny() {
        for (text, wanted) in [
            ("if deny; if our accept", true),
            ("if deny; if our accept; if accept; log", true),
            ("if our accept; if deny", false),
            ("if our accept; jump x", false),
            ("if our accept; queue", false),
            ("if our accept; if our accept", false),
            ("if our deny", false),
        ] {
            let read = lines(text);
            assert_eq!(accepted(&read, &Ends::same(End::Denied(read.len())), &[]).1, wanted, "{text}");
        }
        let read = lines("if our accept; deny");
        assert!(accepted(&read, &Ends::same(End::Denied(1)), &[]).1, "the last denial of everything stays behind");
        let read = lines("if deny; deny; if our accept");
        assert!(!accepted(&read, &Ends::same(End::Denied(1)), &[]).1, "behind it no packet comes by");
    }
}
