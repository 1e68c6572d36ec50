//! What disturbs which path, and what a probe of it proves.
//!
//! Invariant: pure; time is an argument. A path is judged by the last thing that disturbed what it needs: a probe that began later than
//! that thing's end and its bound must be answered, and one of a path that nothing disturbed must always be. Wrong answers are never
//! excused. While what recovery needs is away (a daemon, etcd's majority), what was not back by then is not due, and when it has come back
//! that has its bound; what nothing had disturbed must work all the while.

use std::collections::BTreeMap;
use std::time::Duration;

/// Something a path needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// Everything that begins or ends at a node.
    Node(String),
    /// What passes between a node and others.
    Uplink(String),
    /// Services, as clients on a node reach them.
    Services(String),
    /// What else a node translates: Pods that reach the outside by its address, and host ports.
    Translation(String),
    /// What a Pod sends and receives.
    Pod(String),
    /// One Service, from everywhere.
    Service(String),
    /// What keeps routes at a node: netd.
    Netd(String),
    /// What keeps Services at a node: ipvs-proxy.
    Proxy(String),
    /// What all of them read: etcd.
    Store,
}

/// The last thing that disturbed an element.
#[derive(Debug, Clone)]
struct Mark {
    cause: &'static str,
    held: u32,
    ended: Duration,
    bound: Duration,
}

/// The last time for which something that recovery needs was away.
#[derive(Debug, Clone)]
struct Absence {
    cause: &'static str,
    since: Duration,
    /// When it came back, and how long recovery may take then; `None` while it is away.
    back: Option<(Duration, Duration)>,
}

/// A question and what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// From where to what, for people.
    pub(crate) path: String,
    pub(crate) needs: Vec<Element>,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    /// `None` when the right one answered.
    pub(crate) failure: Option<Failure>,
}

/// Why a probe is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer, in the words of the client.
    Silence(String),
    /// Somebody else answered.
    Wrong(String),
}

/// The longest time in which paths came back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovery {
    pub(crate) disturbed: u32,
    pub(crate) bound: Duration,
    pub(crate) worst: Duration,
    /// The path that took longest, with the time at which it failed last.
    pub(crate) path: String,
}

/// A path that was not answered when it was asked last.
#[derive(Debug)]
struct Failing {
    last: Duration,
    needs: Vec<Element>,
    reported: bool,
}

/// All that is known of paths.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    marks: BTreeMap<Element, Mark>,
    absences: BTreeMap<Element, Absence>,
    failing: BTreeMap<String, Failing>,
    pub(crate) recoveries: BTreeMap<&'static str, Recovery>,
    pub(crate) probes: u64,
    /// Probes of paths that nothing had disturbed within the bound.
    pub(crate) settled: u64,
    /// Failures that a disturbance explains.
    pub(crate) excused: u64,
}

impl Ledger {
    /// Something begins to disturb `elements`, and goes on until it is released.
    pub(crate) fn hold(&mut self, cause: &'static str, elements: &[Element], now: Duration) {
        for element in elements {
            let mark =
                self.marks.entry(element.clone()).or_insert(Mark { cause, held: 0, ended: now, bound: Duration::ZERO });
            mark.cause = cause;
            mark.held += 1;
        }
    }

    /// What began with [`Ledger::hold`] is over; what it disturbed is due after `bound`.
    pub(crate) fn release(&mut self, cause: &'static str, elements: &[Element], bound: Duration, now: Duration) {
        let recovery = self.recoveries.entry(cause).or_default();
        recovery.disturbed += 1;
        recovery.bound = bound;
        for element in elements {
            let Some(mark) = self.marks.get_mut(element) else { continue };
            // A longer bound that has not passed yet stays in force.
            let left = (mark.ended + mark.bound).saturating_sub(now);
            *mark = Mark { cause, held: mark.held.saturating_sub(1), ended: now, bound: bound.max(left) };
        }
    }

    /// Something that is over at once.
    pub(crate) fn disturb(&mut self, cause: &'static str, elements: &[Element], bound: Duration, now: Duration) {
        self.hold(cause, elements, now);
        self.release(cause, elements, bound, now);
    }

    /// What recovery needs is away.
    pub(crate) fn leave(&mut self, cause: &'static str, element: &Element, now: Duration) {
        let before = self.absences.get(element).filter(|absence| match absence.back {
            None => true,
            Some((back, bound)) => back + bound > now,
        });
        let since = before.map_or(now, |absence| absence.since);
        self.absences.insert(element.clone(), Absence { cause, since, back: None });
    }

    /// It is back.
    pub(crate) fn come_back(&mut self, element: &Element, bound: Duration, now: Duration) {
        let Some(absence) = self.absences.get_mut(element) else { return };
        absence.back = Some((now, bound));
        let recovery = self.recoveries.entry(absence.cause).or_default();
        recovery.disturbed += 1;
        recovery.bound = bound;
    }

    /// Every path has answered: nothing is excused by what was before. A Service may have been answered by an endpoint of before.
    pub(crate) fn settle(&mut self) {
        for (element, mark) in &mut self.marks {
            let is_of_services = matches!(element, Element::Service(_) | Element::Services(_));
            if mark.held == 0 && !is_of_services {
                mark.bound = Duration::ZERO;
            }
        }
    }

    /// An element is gone for good, with the paths that need it.
    pub(crate) fn forget(&mut self, element: &Element) {
        self.marks.remove(element);
        self.absences.remove(element);
        self.failing.retain(|_, failing| !failing.needs.contains(element));
    }

    /// Since when a probe of a path with these needs must succeed, with bounds longer by `scale`; `None` while it need not.
    pub(crate) fn due(&self, needs: &[Element], scale: f64) -> Option<Duration> {
        let mut due = Duration::ZERO;
        for mark in needs.iter().filter_map(|need| self.marks.get(need)) {
            if mark.held > 0 {
                return None;
            }
            due = due.max(mark.ended + mark.bound.mul_f64(scale));
        }
        let disturbed = due;
        for absence in needs.iter().filter_map(|need| self.absences.get(need)) {
            // What was back by then stays.
            if disturbed <= absence.since {
                continue;
            }
            let (back, bound) = absence.back?;
            due = due.max(back + bound.mul_f64(scale));
        }
        Some(due)
    }

    /// Takes a probe in; a sentence when it breaks what must hold.
    pub(crate) fn judge(&mut self, probe: &Probe, scale: f64) -> Option<String> {
        self.probes += 1;
        let due = self.due(&probe.needs, scale).filter(|due| probe.began >= *due);
        self.settled += u64::from(due.is_some());
        let Some(failure) = &probe.failure else {
            self.recovered(probe);
            return None;
        };
        let (last, needs) = (probe.ended, probe.needs.clone());
        let before = self.failing.get(&probe.path).is_some_and(|failing| failing.reported);
        let found = match failure {
            Failure::Wrong(who) => Some(format!("{}: answered by {who}", probe.path)),
            Failure::Silence(why) => due.map(|due| self.overdue(probe, why, due)),
        };
        self.excused += u64::from(found.is_none());
        let reported = before || found.is_some();
        self.failing.insert(probe.path.clone(), Failing { last, needs, reported });
        found.filter(|_| !before)
    }

    fn overdue(&self, probe: &Probe, why: &str, due: Duration) -> String {
        let began = probe.began.as_secs_f64();
        let since = self.last(&probe.needs).map(|(cause, ended)| {
            let (due, ended) = (due.as_secs_f64(), ended.as_secs_f64());
            format!("due since {due:.1} s; last disturbed by: {cause}, which ended at {ended:.1} s")
        });
        let since = since.unwrap_or_else(|| "nothing has ever disturbed it".to_owned());
        format!("{}: asked at {began:.1} s: {why} ({since})", probe.path)
    }

    /// What a path waited for last, and when that ended.
    fn last(&self, needs: &[Element]) -> Option<(&'static str, Duration)> {
        let marks = needs.iter().filter_map(|need| self.marks.get(need));
        let (cause, ended, end) =
            marks.map(|mark| (mark.cause, mark.ended, mark.ended + mark.bound)).max_by_key(|(_, ended, _)| *ended)?;
        let absences = needs.iter().filter_map(|need| self.absences.get(need)).filter(|absence| end > absence.since);
        let backs = absences.filter_map(|absence| Some((absence.cause, absence.back?.0)));
        backs.chain([(cause, ended)]).max_by_key(|(_, ended)| *ended)
    }

    fn recovered(&mut self, probe: &Probe) {
        let Some(Failing { last: failed, .. }) = self.failing.remove(&probe.path) else { return };
        // What is still going on has not been recovered from; what was before it explains nothing.
        if probe.needs.iter().filter_map(|need| self.marks.get(need)).any(|mark| mark.held > 0) {
            return;
        }
        let Some((cause, ended)) = self.last(&probe.needs) else { return };
        let took = failed.saturating_sub(ended);
        if let Some(recovery) = self.recoveries.get_mut(cause).filter(|recovery| recovery.worst < took) {
            recovery.worst = took;
            recovery.path = format!("{}, until {:.1} s", probe.path, failed.as_secs_f64());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail by panic")]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn uplink(name: &str) -> Element {
        Element::Uplink(name.to_owned())
    }

    fn probe(began: u64, failure: Option<Failure>) -> Probe {
        let needs = vec![uplink("a"), uplink("b")];
        Probe { path: "p to q".to_owned(), needs, began: at(began), ended: at(began + 1), failure }
    }

    fn silence() -> Option<Failure> {
        Some(Failure::Silence("no answer".to_owned()))
    }

    #[test]
    fn path_that_nothing_disturbed_never_fails() {
        let mut ledger = Ledger::default();
        assert!(ledger.judge(&probe(3, None), 1.0).is_none());
        let found = ledger.judge(&probe(4, silence()), 1.0).unwrap();
        assert!(found.contains("p to q") && found.contains("nothing has ever disturbed it"), "{found}");
    }

    #[test]
    fn disturbed_path_is_due_after_the_bound_and_not_before() {
        let mut ledger = Ledger::default();
        ledger.disturb("a flap", &[uplink("b")], BOUND, at(10));
        assert!(ledger.judge(&probe(14, silence()), 1.0).is_none());
        assert!(ledger.judge(&probe(15, silence()), 2.0).is_none(), "on a machine that is twice as busy");
        assert!(ledger.judge(&probe(15, silence()), 1.0).unwrap().contains("a flap"));
        assert_eq!((ledger.probes, ledger.settled, ledger.excused), (3, 1, 2));
    }

    #[test]
    fn path_is_not_due_while_something_holds_it_and_what_else_happens_elsewhere_excuses_nothing() {
        let mut ledger = Ledger::default();
        ledger.hold("a flap", &[uplink("b")], at(1));
        assert!(ledger.judge(&probe(100, silence()), 1.0).is_none());
        ledger.release("a flap", &[uplink("b")], BOUND, at(101));
        assert!(ledger.judge(&probe(107, silence()), 1.0).is_some());
        ledger.disturb("another flap", &[uplink("c")], BOUND, at(120));
        assert!(ledger.judge(&Probe { path: "p to r".to_owned(), ..probe(121, silence()) }, 1.0).is_some());
    }

    #[test]
    fn what_was_not_back_when_a_daemon_went_is_due_after_its_return() {
        let mut ledger = Ledger::default();
        let netd = Element::Netd("a".to_owned());
        let asked = |began: u64| {
            let mut probe = probe(began, silence());
            probe.needs.push(netd.clone());
            probe
        };
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(10));
        ledger.leave("netd killed", &netd, at(12));
        assert!(ledger.judge(&asked(90), 1.0).is_none());
        ledger.come_back(&netd, 2 * BOUND, at(100));
        assert!(ledger.judge(&asked(109), 1.0).is_none());
        let found = ledger.judge(&asked(110), 1.0).unwrap();
        assert!(found.contains("netd killed, which ended at 100.0 s"), "{found}");
        // Paths that do not need it were due long before.
        assert!(ledger.judge(&Probe { path: "another".to_owned(), ..probe(90, silence()) }, 1.0).is_some());
    }

    #[test]
    fn path_that_worked_when_a_daemon_went_may_not_fail_meanwhile_nor_when_it_returns() {
        let mut ledger = Ledger::default();
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(10));
        ledger.leave("no etcd", &Element::Store, at(20));
        let asked = |path: &str, began: u64| {
            let mut probe = Probe { path: path.to_owned(), ..probe(began, silence()) };
            probe.needs.push(Element::Store);
            probe
        };
        assert!(ledger.judge(&asked("one", 21), 1.0).is_some());
        ledger.come_back(&Element::Store, BOUND, at(30));
        assert!(ledger.judge(&asked("two", 31), 1.0).is_some());
    }

    #[test]
    fn nothing_is_excused_once_every_path_has_answered() {
        let mut ledger = Ledger::default();
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(10));
        let service = vec![Element::Service("s".to_owned())];
        ledger.disturb("a change", &service, BOUND, at(10));
        ledger.settle();
        assert!(ledger.judge(&probe(11, silence()), 1.0).is_some());
        assert!(
            ledger.judge(&Probe { needs: service, path: "p to s".to_owned(), ..probe(11, silence()) }, 1.0).is_none()
        );
    }

    #[test]
    fn wrong_answer_is_never_excused() {
        let mut ledger = Ledger::default();
        ledger.hold("a flap", &[uplink("a")], at(1));
        let found = ledger.judge(&probe(2, Some(Failure::Wrong("r".to_owned()))), 1.0);
        assert_eq!(found.unwrap(), "p to q: answered by r");
    }

    #[test]
    fn path_that_stays_broken_is_reported_once() {
        let mut ledger = Ledger::default();
        let asked: Vec<bool> = (1..4).map(|began| ledger.judge(&probe(began, silence()), 1.0).is_some()).collect();
        assert_eq!(asked, [true, false, false]);
        ledger.judge(&probe(5, None), 1.0);
        assert!(ledger.judge(&probe(6, silence()), 1.0).is_some());
    }

    #[test]
    fn recovery_is_the_time_from_the_end_of_the_cause_to_the_last_failure() {
        let mut ledger = Ledger::default();
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(10));
        ledger.judge(&probe(11, silence()), 1.0);
        ledger.judge(&probe(13, None), 1.0);
        ledger.judge(&probe(50, None), 1.0);
        let recovery = ledger.recoveries.get("a flap").unwrap();
        assert_eq!((recovery.worst, recovery.disturbed, recovery.bound), (at(2), 1, BOUND));
    }

    #[test]
    fn recovery_while_something_is_held_is_not_that_from_what_was_before() {
        let mut ledger = Ledger::default();
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(10));
        ledger.hold("another", &[uplink("b")], at(50));
        ledger.judge(&probe(60, silence()), 1.0);
        ledger.judge(&probe(61, None), 1.0);
        assert_eq!(ledger.recoveries.get("a flap").unwrap().worst, Duration::ZERO);
    }

    #[test]
    fn shorter_bound_does_not_end_a_longer_one() {
        let mut ledger = Ledger::default();
        ledger.disturb("a reboot", &[uplink("a")], 8 * BOUND, at(10));
        ledger.disturb("a flap", &[uplink("a")], BOUND, at(11));
        assert!(ledger.judge(&probe(49, silence()), 1.0).is_none());
        assert!(ledger.judge(&probe(50, silence()), 1.0).is_some());
    }
}
