//! The thread's rounds: wait, take in, pass, report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reconcile::Audited;
use tokio::sync::oneshot;

use super::mailbox::{Inside, Mailbox};
use super::{Cause, Took, Work};
use crate::slot::Slot;
use crate::spent::Spent;

/// How long to wait for more of the same before a table is listed.
const QUIET: Duration = Duration::from_millis(20);

/// Shortest time between two passes that the work itself asks for: a row whose time has come but that waits for
/// something else must not keep the thread busy.
const SPACING: Duration = Duration::from_millis(10);

pub(super) struct Rounds<W: Work> {
    work: W,
    mailbox: Mailbox<W>,
    reports: Arc<Slot<W::Report>>,
    /// When an audit begins that nobody has asked for; one that is under way sets it at its end.
    next_audit: Duration,
    /// End of the last pass.
    passed: Duration,
    /// When a change last had its tables listed.
    listed: BTreeMap<W::Change, Duration>,
    /// Changes whose listing is still to come, with the time when they came.
    pending: BTreeMap<W::Change, Duration>,
    /// When the first event came that no pass has worked on and an order is about.
    ordered: Option<Duration>,
    /// Who waits for the end of an audit that has not begun.
    auditors: Vec<oneshot::Sender<()>>,
    /// Who waits for the end of the audit that is under way, if one is.
    audit: Option<Vec<oneshot::Sender<()>>>,
    /// What that audit has taken of a processor.
    auditing: Duration,
}

impl<W: Work> Rounds<W> {
    pub(super) fn new(work: W, mailbox: Mailbox<W>, reports: Arc<Slot<W::Report>>) -> Self {
        let next_audit = mailbox.now() + work.audit_period(Duration::ZERO);
        Self {
            work,
            mailbox,
            reports,
            next_audit,
            passed: Duration::ZERO,
            listed: BTreeMap::new(),
            pending: BTreeMap::new(),
            ordered: None,
            auditors: Vec::new(),
            audit: None,
            auditing: Duration::ZERO,
        }
    }

    /// Works until it is asked to end.
    pub(super) fn run(mut self) {
        let mailbox = self.mailbox.clone();
        let heartbeat = mailbox.heartbeat();
        // The first pass of work that needs no order is due at once.
        let mut first = self.work.is_begun();
        loop {
            let until = if first || self.audit.is_some() { Some(Duration::ZERO) } else { self.due_at() };
            match until {
                Some(until) => heartbeat.back_within(until.saturating_sub(mailbox.now())),
                None => heartbeat.idle(),
            }
            let inside = mailbox.take(until);
            if inside.stop {
                return;
            }
            heartbeat.busy();
            self.take_in(inside);
            if let Some(cause) = self.cause(first) {
                first = false;
                self.pass(cause);
            }
            self.audit();
        }
    }

    fn take_in(&mut self, inside: Inside<W>) {
        let now = self.mailbox.now();
        for order in inside.orders {
            self.work.take(order, now);
        }
        if let Some(came) = inside.first_order {
            self.ordered.get_or_insert(came);
        }
        for (change, came) in inside.changes {
            self.pending.entry(change).or_insert(came);
        }
        if inside.audit {
            self.next_audit = now;
            self.auditors.extend(inside.auditors);
        }
        for asked in inside.questions.into_iter().filter(|asked| !asked.is_given_up()) {
            asked.answer(&self.work);
        }
    }

    /// What is due now, if anything is.
    fn cause(&self, first: bool) -> Option<Cause> {
        if !self.work.is_begun() {
            return None;
        }
        if self.ordered.is_some() {
            return Some(Cause::Order);
        }
        let now = self.mailbox.now();
        if self.pending.iter().any(|(change, came)| self.list_at(*change, *came) <= now) {
            return Some(Cause::Change);
        }
        (first || self.due_at().is_some_and(|due| due <= now)).then_some(Cause::Timer)
    }

    /// When there is something to do; `None` before the work can begin.
    fn due_at(&self) -> Option<Duration> {
        if !self.work.is_begun() {
            return None;
        }
        let own = self.work.next().map(|next| next.max(self.passed + SPACING));
        let lists = self.pending.iter().map(|(change, came)| self.list_at(*change, *came));
        let audit = self.audit.is_none().then_some(self.next_audit);
        lists.chain(own).chain(audit).min()
    }

    /// When the tables of `change` may be listed.
    fn list_at(&self, change: W::Change, came: Duration) -> Duration {
        let earliest = self.listed.get(&change).map_or(Duration::ZERO, |last| *last + W::min_interval(change));
        earliest.max(came + QUIET)
    }

    fn pass(&mut self, cause: Cause) {
        let now = self.mailbox.now();
        let mut came = self.ordered.take();
        if now >= self.next_audit && self.audit.is_none() {
            (self.next_audit, self.auditing) = (Duration::MAX, Duration::ZERO);
            self.audit = Some(std::mem::take(&mut self.auditors));
            self.work.begin_audit();
        }
        let pending = self.pending.iter().map(|(change, came)| (*change, *came));
        let due: Vec<_> = pending.filter(|(change, came)| self.list_at(*change, *came) <= now).collect();
        for (change, since) in due {
            self.pending.remove(&change);
            self.listed.insert(change, now);
            self.work.invalidate(change);
            came = Some(came.map_or(since, |first| first.min(since)));
        }
        let pass = self.work.pass(cause, now);
        let end = self.mailbox.now();
        self.passed = end;
        let took = Took {
            pass: end.saturating_sub(now),
            event_to_kernel: came.map(|came| end.saturating_sub(came)),
            now: end,
        };
        if let Some(report) = self.work.report(cause, &pass, took) {
            self.reports.put(report);
        }
    }

    /// Takes the next step of the audit that is under way; what it has found is mended before the next one.
    fn audit(&mut self) {
        if self.audit.is_none() {
            return;
        }
        let spent = Spent::begin();
        let audited = self.work.audit();
        if audited == Some(Audited::Due) {
            self.pass(Cause::Timer);
        }
        self.auditing += spent.so_far();
        if audited.is_none() {
            self.end_audit(self.mailbox.now());
        }
    }

    fn end_audit(&mut self, now: Duration) {
        // One that was asked for meanwhile is due already.
        self.next_audit = self.next_audit.min(now + self.work.audit_period(self.auditing));
        for waiting in self.audit.take().into_iter().flatten() {
            // Whoever asked may have gone away meanwhile.
            let _ = waiting.send(());
        }
    }
}
