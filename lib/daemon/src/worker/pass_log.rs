//! `PassLog`: what passes did, in the log.
//!
//! Invariant: lines grow with what changes, and only for debugging with its rows. A failure that goes on is one line, however often it is tried again and
//! whatever event makes it be tried; once it has been mended it is a new one. A row that waits for a row of another table which failed itself
//! is no line but a number in the line of that one: a link that cannot be made takes a row of every table along. One that waits for something
//! else becomes a line when it still does at its next try: what goes is announced a moment later.

use std::collections::{BTreeMap, BTreeSet};

use reconcile::{Done, Failure, Pass, RetryClass, Stack, State, Written};
use tracing::level_filters::LevelFilter;

use super::{Cause, Took};

/// Errors of one pass that are written; the status says all of them.
const LOGGED_ERRORS: usize = 10;

/// Writes passes into the log.
#[derive(Debug, Default)]
pub struct PassLog {
    /// Failures that are in the log and go on.
    failing: BTreeSet<String>,
}

impl PassLog {
    /// True when each row that is written is a line: [`Stack::keep_written`] before a pass.
    #[must_use]
    pub fn wants_rows() -> bool {
        // Asked by `enabled!`, the filters of the layers would keep their answer for the thread's next event.
        LevelFilter::current() >= LevelFilter::DEBUG
    }

    /// Writes what `pass` over `stack` did.
    pub fn write(&mut self, cause: Cause, pass: &Pass, took: Took, stack: &Stack) {
        if !self.failing.is_empty() || pass.failed > 0 {
            self.write_failures(&pass.errors, stack);
        }
        pass.written.iter().for_each(write_row);
        let milliseconds = u64::try_from(took.pass.as_millis()).unwrap_or(u64::MAX);
        let (set, removed, failed) = (pass.upserted, pass.removed, pass.failed);
        if set > 0 || removed > 0 {
            tracing::info!(cause = cause.name(), set, removed, failed, milliseconds, "kernel tables changed");
        } else if cause == Cause::Order && pass.is_idle() && pass.observed > 0 {
            tracing::info!(milliseconds, "kernel tables in sync, 0 changes");
        }
    }

    fn write_failures(&mut self, errors: &[Failure], stack: &Stack) {
        let failed = failed_rows(stack);
        let (mut new, mut waiting) = (Vec::new(), BTreeMap::<&str, usize>::new());
        for failure in errors {
            if let Some(key) = awaited(failure, &failed) {
                *waiting.entry(key).or_default() += 1;
                continue;
            }
            let may_be_gone = failure.class == RetryClass::Wait && failure.times == 1;
            if !may_be_gone && !self.failing.contains(&failure.to_string()) {
                new.push(failure);
            }
        }
        for failure in new.iter().take(LOGGED_ERRORS) {
            let words = failure.reason.split([' ', ':']);
            match words.filter_map(|word| waiting.get(word)).next() {
                Some(waiting) => tracing::warn!(waiting, "{failure}"),
                None => tracing::warn!("{failure}"),
            }
        }
        if let Some(more) = new.len().checked_sub(LOGGED_ERRORS).filter(|more| *more > 0) {
            tracing::warn!(more, "further kernel errors; see the status");
        }
        let written: BTreeSet<String> = new.iter().map(ToString::to_string).collect();
        self.failing =
            failing(stack).into_iter().filter(|text| self.failing.contains(text) || written.contains(text)).collect();
    }
}

fn write_row(Written { table, row, value, done }: &Written) {
    match done {
        Done::Created => tracing::debug!(table, row, value, "row created"),
        Done::Changed => tracing::debug!(table, row, value, "row changed"),
        Done::Repaired => tracing::debug!(table, row, value, "row put right after somebody else had changed it"),
        Done::Removed => tracing::debug!(table, row, value, "row removed"),
    }
}

/// Keys of rows that failed, each with the name of its table.
fn failed_rows(stack: &Stack) -> BTreeMap<String, &'static str> {
    let failed = stack.stages().flat_map(|stage| stage.failed().into_iter().map(|row| (row.key, stage.name())));
    failed.collect()
}

/// The key of the failed row of another table for which the row of `failure` waits: its text names it.
fn awaited<'a>(failure: &Failure, failed: &'a BTreeMap<String, &'static str>) -> Option<&'a str> {
    if failure.class != RetryClass::Wait {
        return None;
    }
    let words = failure.reason.split(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | ','));
    let mut rows = words.filter_map(|word| failed.get_key_value(word));
    rows.find(|(_, table)| **table != failure.table).map(|(key, _)| key.as_str())
}

/// The failures that go on, each as its pass says it.
fn failing(stack: &Stack) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for stage in stack.stages() {
        let name = stage.name();
        texts.extend(stage.status().observe_error.map(|reason| format!("{name}: {reason}")));
        texts.extend(stage.failed().into_iter().filter_map(|row| match row.state {
            State::Failed { reason, .. } => Some(format!("{name}: {reason}")),
            State::Pending | State::Done => None,
        }));
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::sync::Arc;
    use std::time::Duration;

    use kernel::fake::FakeTable;
    use reconcile::Reconciler;
    use tracing::Level;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{Layer as _, Registry};

    use super::*;

    #[test]
    fn failure_that_goes_on_is_new_once_and_again_after_it_was_mended() {
        let fake = FakeTable::<u32, u32>::default();
        let mut stack = Stack::new();
        let table = stack.push(Reconciler::new("rows", fake.clone()));
        stack.get_mut(table).unwrap().want(1, Some(7));
        let took = Took { pass: Duration::ZERO, event_to_kernel: None, now: Duration::ZERO };
        let mut log = PassLog::default();
        let mut pass = |stack: &mut Stack, errors: &[Option<i32>], seconds| {
            fake.contents().errors = errors.iter().copied().collect();
            let pass = stack.pass(true, Duration::from_secs(seconds));
            let new = pass.errors.iter().filter(|error| !log.failing.contains(&error.to_string())).count();
            log.write(Cause::Change, &pass, took, stack);
            (pass.failed, new)
        };
        let refused = Some(17);
        assert_eq!(pass(&mut stack, &[None, refused], 1), (1, 1));
        assert_eq!(pass(&mut stack, &[refused], 100), (1, 0), "tried again");
        assert_eq!(pass(&mut stack, &[], 200), (0, 0), "mended");
        stack.get_mut(table).unwrap().want(1, Some(8));
        assert_eq!(pass(&mut stack, &[refused], 300), (1, 1));
    }

    #[test]
    fn a_row_that_waits_is_a_line_when_it_is_met_again() {
        let (links, addresses) = (FakeTable::<String, u32>::default(), FakeTable::<String, u32>::default());
        let mut stack = Stack::new();
        let link = stack.push(Reconciler::new("links", links.clone()));
        let address = stack.push(Reconciler::new("addresses", addresses.clone()));
        let (vxlan, on_vxlan) = ("flannel.1".to_owned(), "172.7.21.0/flannel.1".to_owned());
        let took = Took { pass: Duration::ZERO, event_to_kernel: None, now: Duration::ZERO };
        let mut log = PassLog::default();
        let mut pass = |stack: &mut Stack, seconds| {
            logged(Level::WARN, || {
                log.write(Cause::Change, &stack.pass(true, Duration::from_secs(seconds)), took, stack)
            })
        };
        stack.want(link, vxlan.clone(), Some(7));
        assert_eq!(pass(&mut stack, 1), "");
        addresses.refuse(on_vxlan.clone(), 19);
        stack.want(address, on_vxlan.clone(), Some(7));
        assert_eq!(pass(&mut stack, 2), "", "the link may have gone a moment ago");
        assert_eq!(pass(&mut stack, 2), "", "it was not tried again");
        assert!(pass(&mut stack, 100).contains("addresses: "), "it was");
        assert_eq!(pass(&mut stack, 200), "", "it goes on");
        // One whose link is known to be gone is a number in its line.
        addresses.allow(&on_vxlan);
        pass(&mut stack, 300);
        links.refuse(vxlan.clone(), 22);
        addresses.refuse(on_vxlan.clone(), 19);
        stack.want(link, vxlan.clone(), Some(8));
        stack.want(address, on_vxlan.clone(), Some(8));
        let text = pass(&mut stack, 400);
        assert!(text.contains("links: ") && text.contains("waiting=1") && text.lines().count() == 1, "{text}");
    }

    /// What is logged while `work` is done, from `level` on.
    fn logged(level: Level, work: impl FnOnce()) -> String {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let layer = tracing_subscriber::fmt::layer().with_writer(Arc::clone(&file)).with_ansi(false).without_time();
        let subscriber = Registry::default().with(layer.with_target(false).with_filter(LevelFilter::from_level(level)));
        tracing::subscriber::with_default(subscriber, work);
        let mut text = String::new();
        (&*file).rewind().unwrap();
        (&*file).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn each_row_that_was_written_is_a_line_for_debugging_and_for_nobody_else() {
        let work = || {
            let fake = FakeTable::<u32, u32>::default();
            let mut stack = Stack::new();
            let table = stack.push(Reconciler::new("rows", fake.clone()));
            let took = Took { pass: Duration::ZERO, event_to_kernel: None, now: Duration::ZERO };
            let pass = |stack: &mut Stack, value| {
                stack.want(table, 1, value);
                stack.keep_written(PassLog::wants_rows());
                let pass = stack.pass(true, Duration::ZERO);
                PassLog::default().write(Cause::Change, &pass, took, stack);
            };
            pass(&mut stack, Some(7));
            pass(&mut stack, Some(8));
            fake.contents().rows.clear();
            stack.invalidate(table);
            pass(&mut stack, Some(8));
            pass(&mut stack, None);
        };
        let rows = |text: &str| -> Vec<String> {
            text.lines().filter_map(|line| line.strip_prefix("DEBUG ")).map(str::to_owned).collect()
        };
        let text = logged(Level::DEBUG, work);
        let expected = [
            "row created table=\"rows\" row=\"1\" value=\"7\"",
            "row changed table=\"rows\" row=\"1\" value=\"8\"",
            "row put right after somebody else had changed it table=\"rows\" row=\"1\" value=\"8\"",
            "row removed table=\"rows\" row=\"1\" value=\"8\"",
        ];
        assert_eq!(rows(&text), expected, "{text}");
        let text = logged(Level::INFO, work);
        assert!(text.contains("kernel tables changed") && rows(&text).is_empty(), "{text}");
    }

    #[test]
    fn rows_that_wait_for_a_row_that_failed_are_no_lines_of_their_own() {
        let failed = BTreeMap::from([("flannel.1".to_owned(), "links"), ("172.7.22.0/24".to_owned(), "routes")]);
        let of = |table, class, reason: &str| {
            let failure = Failure { table, class, errno: None, times: 1, reason: reason.to_owned() };
            awaited(&failure, &failed).map(str::to_owned)
        };
        let wait = RetryClass::Wait;
        assert_eq!(of("links", wait, "set link flannel.1: link eth0 does not exist"), None, "it is the cause");
        let device = Some("flannel.1".to_owned());
        for (table, reason) in [
            ("addresses", "set 172.7.21.0/32 dev flannel.1: link flannel.1 does not exist"),
            ("sysctls", "read parameter a: /proc/sys/net/ipv6/conf/flannel.1/accept_ra does not exist"),
        ] {
            assert_eq!(of(table, wait, reason), device, "{table}");
            assert_eq!(of(table, RetryClass::Refuse, reason), None, "refused for a reason of its own");
        }
        assert_eq!(of("addresses", wait, "set 172.7.21.0/32 dev flannel.10: link flannel.10 does not exist"), None);
    }
}
