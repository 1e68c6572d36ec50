//! `Dispatch`: the chain that a connection to a frontend goes through, which tells the classes of clients apart, marks what is to
//! be masqueraded and chooses an endpoint.
//!
//! A chain knows how many endpoints there are for each class, not which: those are elements, and all frontends with as many
//! share it. Its name says the same as its rules: `choose/3/3m/1-at-3` leads a Pod to one of the first three endpoints, this node
//! likewise and masqueraded (`m`), and everybody else to the one behind them. `choose/ipvs/ipvsm/ipvsm` leaves the choice to a virtual
//! server.
//!
//! Invariants. A chain decides: who finds no endpoint in the map, for the moment that it is being changed, is dropped and tries
//! again; were the packet to go on, its connection would be remembered as one without an endpoint. What is to be refused goes
//! on, because the kernel can refuse only in filter chains; so does what IPVS balances.

use std::mem::discriminant;
use std::sync::Arc;

use netstate::IpFamily;
use netstate::mark::MASQUERADE;
use netstate::nft::{Chain, Destination, Field, Match, Name, Op, Rule, Verdict};

use super::affinity::LEAD;
use super::{ENDPOINTS, NODE_ENDPOINTS};
use crate::dataplane::{Mode, ipvs};
use crate::plan::Frontend;
use crate::plan::frontend::Place;
use crate::plan::pods::Pods;
use crate::plan::route::{Answer, Route, Routes};
use crate::plan::select::Backend;

/// The first word of a chain's name.
const ROOM: &str = "choose";
const NODE_ROOM: &str = "choose-node";

/// What becomes of the connections of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A virtual server of IPVS answers.
    Balance,
    /// One of `count` endpoints from index `first` on.
    Choose { first: u32, count: u32 },
    /// Nothing is answered.
    Drop,
    /// The filter chains refuse it.
    Reject,
}

/// An outcome, and whether the endpoint sees the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Branch {
    outcome: Outcome,
    masquerade: bool,
}

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dataplane) struct Dispatch {
    pod: Branch,
    node: Branch,
    outside: Branch,
}

/// The backends of a frontend, each list of the plan once.
pub(in crate::dataplane) fn backends(frontend: &Frontend) -> impl Iterator<Item = &Backend> {
    lists(frontend, None).into_iter().flatten()
}

/// The lists of backends that its chain chooses from, which follow one another in the order of their indexes.
pub(in crate::dataplane) fn chosen(frontend: &Frontend, mode: Mode) -> Vec<&[Backend]> {
    lists(frontend, balanced(frontend, mode))
}

/// What virtual servers answer, where there are any.
fn balanced(frontend: &Frontend, mode: Mode) -> Option<&Answer> {
    (mode == Mode::Ipvs).then(|| ipvs::answer(frontend))
}

/// The lists of the classes whose answer is not `balanced`.
fn lists<'a>(frontend: &'a Frontend, balanced: Option<&Answer>) -> Vec<&'a [Backend]> {
    let mut found: Vec<&[Backend]> = Vec::new();
    let routes = [&frontend.routes.pod, &frontend.routes.node, &frontend.routes.outside];
    for list in routes.map(|route| &route.answer).into_iter().filter(|answer| Some(*answer) != balanced) {
        let list = list.backends();
        if !list.is_empty() && !found.contains(&list) {
            found.push(list);
        }
    }
    found
}

impl Dispatch {
    /// The chain for a frontend. Where IPVS balances the node has the virtual address and connects from that, which leads nowhere back.
    pub(in crate::dataplane) fn of(frontend: &Frontend, mode: Mode) -> Self {
        let balanced = balanced(frontend, mode);
        let lists = lists(frontend, balanced);
        let routes = &frontend.routes;
        let [pod, mut node, outside] =
            [&routes.pod, &routes.node, &routes.outside].map(|route| branch(route, balanced, &lists));
        node.masquerade |= mode == Mode::Ipvs && matches!(routes.node.answer, Answer::Backends(_));
        Self { pod, node, outside }
    }

    /// What a chain of this name does.
    pub(super) fn named(name: &Name) -> Option<Self> {
        let mut words = name.as_str().split('/');
        let room = words.next()?;
        let mut branch = || words.next().and_then(Branch::named);
        let (pod, node, outside) = (branch()?, branch()?, branch()?);
        [ROOM, NODE_ROOM, LEAD].contains(&room).then_some(Self { pod, node, outside })
    }

    /// Where clients are led by this chain, with these endpoints in the order of their indexes, and those behind virtual servers.
    pub(super) fn routes(self, endpoints: &[Backend], balanced: &[Backend]) -> Routes {
        let route = |branch: Branch| Route {
            answer: branch.outcome.answer(endpoints, balanced),
            masquerade: branch.masquerade,
        };
        Routes { pod: route(self.pod), node: route(self.node), outside: route(self.outside) }
    }

    /// True when every class goes on as it came: then there is nothing to go through.
    pub(super) fn is_idle(self) -> bool {
        let goes_on =
            |branch: &Branch| matches!(branch.outcome, Outcome::Reject | Outcome::Balance) && !branch.masquerade;
        [self.pod, self.node, self.outside].iter().all(goes_on)
    }

    /// True when both do the same to every class, whichever endpoints they choose from.
    pub(super) fn is_like(self, other: Self) -> bool {
        let alike = |one: Branch, other: Branch| {
            one.masquerade == other.masquerade && discriminant(&one.outcome) == discriminant(&other.outcome)
        };
        alike(self.pod, other.pod) && alike(self.node, other.node) && alike(self.outside, other.outside)
    }

    /// True when an endpoint is chosen for some class.
    pub(super) fn chooses(self) -> bool {
        let branches = [self.pod, self.node, self.outside];
        branches.iter().any(|branch| matches!(branch.outcome, Outcome::Choose { .. }))
    }

    /// True when some class is refused.
    pub(super) fn refuses(self) -> bool {
        [self.pod, self.node, self.outside].iter().any(|branch| branch.outcome == Outcome::Reject)
    }

    /// The chain's name; frontends at an address and those at every address of the node have other maps.
    pub(super) fn name(self, place: Place) -> Name {
        let room = if matches!(place, Place::AnyNode(_)) { NODE_ROOM } else { ROOM };
        Name::observed(format!("{room}/{}", self.text()))
    }

    /// What becomes of each class.
    pub(super) fn text(self) -> String {
        [self.pod, self.node, self.outside].map(Branch::text).join("/")
    }

    /// The chain, where clients are known for Pods by `pods`.
    pub(super) fn chain(self, place: Place, family: IpFamily, pods: &Pods) -> Chain {
        Chain::regular(self.rules(pods, |outcome| outcome.rules(place, family)))
    }

    /// The rules of a chain that tells the classes apart, where `end` gives those for what becomes of one.
    pub(super) fn rules(self, pods: &Pods, end: impl Fn(Outcome) -> Vec<Rule>) -> Vec<Rule> {
        let end = |branch: Branch| end(branch.outcome);
        let a_pod = from_pods(Op::Is, pods).map(|condition| (Rule::new().when(condition), self.pod));
        let this_node = Rule::new().when(Match::SaddrLocal(Op::Is));
        if self.pod.outcome == self.node.outcome && self.node.outcome == self.outside.outcome {
            let mut rules = self.marks(pods);
            rules.extend(end(self.pod));
            return rules;
        }
        let mut rules = Vec::new();
        for (class, branch) in a_pod.into_iter().chain([(this_node, self.node), (Rule::new(), self.outside)]) {
            let mark = branch.masquerade.then(|| Rule::new().then(MASQUERADE.set()));
            rules.extend(mark.into_iter().chain(end(branch)).map(|rule| behind(&class, rule)));
        }
        rules
    }

    /// Marks the classes that are masqueraded, where all go the same way.
    fn marks(self, pods: &Pods) -> Vec<Rule> {
        let mark = |rule: Rule| rule.then(MASQUERADE.set());
        let [pod, node, outside] = [self.pod, self.node, self.outside].map(|branch| branch.masquerade);
        let not_a_pod = || from_pods(Op::IsNot, pods).map_or_else(Rule::new, |condition| Rule::new().when(condition));
        let mut rules = Vec::new();
        match (pod, node == outside) {
            (true, true) if node => return vec![mark(Rule::new())],
            (_, true) => rules.extend(node.then(|| mark(not_a_pod()))),
            (_, false) => {
                let op = if node { Op::Is } else { Op::IsNot };
                rules.push(mark(not_a_pod().when(Match::SaddrLocal(op))));
            }
        }
        let a_pod = from_pods(Op::Is, pods).filter(|_| pod);
        rules.extend(a_pod.map(|condition| mark(Rule::new().when(condition))));
        rules
    }
}

/// Whether a packet is a Pod's; `None` where no packet is.
fn from_pods(op: Op, pods: &Pods) -> Option<Match> {
    match pods {
        Pods::Inside(network) => Some(Match::Saddr(op, *network)),
        // What this node sends has come in by none.
        Pods::From(link) => Some(Match::Iifname(op, link.clone())),
        Pods::FromAny(prefix) => Some(Match::IifnamePrefix(op, prefix.clone())),
        Pods::Unknown => None,
    }
}

/// `rule` for packets of which what `class` asks for holds.
fn behind(class: &Rule, rule: Rule) -> Rule {
    Rule { statements: class.statements.iter().cloned().chain(rule.statements).collect(), comment: None }
}

fn branch(route: &Route, balanced: Option<&Answer>, lists: &[&[Backend]]) -> Branch {
    let outcome = match &route.answer {
        Answer::Drop => Outcome::Drop,
        answer if Some(answer) == balanced => Outcome::Balance,
        Answer::Backends(backends) => {
            let before = lists.iter().take_while(|list| ***list != **backends).map(|list| list.len()).sum();
            Outcome::Choose { first: number(before), count: number(backends.len()) }
        }
        Answer::Reject => Outcome::Reject,
    };
    let is_answered = matches!(route.answer, Answer::Backends(_));
    Branch { outcome, masquerade: route.masquerade && is_answered }
}

pub(super) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Branch {
    fn text(self) -> String {
        let text = match self.outcome {
            Outcome::Balance => "ipvs".to_owned(),
            Outcome::Choose { first: 0, count } => count.to_string(),
            Outcome::Choose { first, count } => format!("{count}-at-{first}"),
            Outcome::Drop => "drop".to_owned(),
            Outcome::Reject => "reject".to_owned(),
        };
        if self.masquerade { text + "m" } else { text }
    }

    fn named(text: &str) -> Option<Self> {
        let (text, masquerade) = text.strip_suffix('m').map_or((text, false), |text| (text, true));
        let outcome = match text {
            "ipvs" => Outcome::Balance,
            "drop" => Outcome::Drop,
            "reject" => Outcome::Reject,
            _ => {
                let (count, first) = text.split_once("-at-").unwrap_or((text, "0"));
                Outcome::Choose { first: first.parse().ok()?, count: count.parse().ok()? }
            }
        };
        Some(Self { outcome, masquerade })
    }
}

impl Outcome {
    fn answer(self, endpoints: &[Backend], balanced: &[Backend]) -> Answer {
        match self {
            Self::Balance if balanced.is_empty() => Answer::Reject,
            Self::Balance => Answer::Backends(balanced.into()),
            Self::Choose { first, count } => {
                let place = |number| usize::try_from(number).unwrap_or(usize::MAX);
                let chosen: Arc<[Backend]> = endpoints.iter().skip(place(first)).take(place(count)).copied().collect();
                // Endpoints that somebody deleted are nobody's answer.
                if chosen.is_empty() { Answer::Drop } else { Answer::Backends(chosen) }
            }
            Self::Drop => Answer::Drop,
            Self::Reject => Answer::Reject,
        }
    }

    /// The rules for it at a place.
    pub(super) fn rules(self, place: Place, family: IpFamily) -> Vec<Rule> {
        match self {
            Self::Choose { first, count } => {
                let number = Field::Random { below: count, offset: first };
                let (map, fields) = match place {
                    Place::Address(_) => (ENDPOINTS, vec![Field::Daddr(family), Field::L4Proto, Field::Dport, number]),
                    Place::AnyNode(_) => (NODE_ENDPOINTS, vec![Field::L4Proto, Field::Dport, number]),
                };
                let to = Destination::Map { family, fields, map: Name::literal(map), port: true };
                vec![Rule::new().then(to), Rule::new().then(Verdict::Drop)]
            }
            Self::Drop => vec![Rule::new().then(Verdict::Drop)],
            Self::Reject | Self::Balance => vec![Rule::new().then(Verdict::Accept)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_answer_or_source_for_any_class_is_not_alike_and_another_choice_is() {
        let named = |name: &str| Dispatch::named(&Name::observed(format!("choose/{name}"))).unwrap();
        let before = named("3/3m/1-at-3");
        for (name, is_like) in [
            ("3/3m/1-at-3", true),
            ("2/4m/1", true),
            ("3m/3m/1-at-3", false),
            ("3/3/1-at-3", false),
            ("3/3m/1-at-3m", false),
            ("drop/3m/1-at-3", false),
            ("3/dropm/1-at-3", false),
            ("3/3m/drop", false),
            ("3/3m/reject", false),
            ("3/3m/ipvs", false),
        ] {
            let after = named(name);
            assert_eq!((before.is_like(after), after.is_like(before)), (is_like, is_like), "{name}");
        }
    }
}
