//! `PassLog`: what passes did, in the log.
//!
//! Invariant: lines grow with what changes. A failure that goes on is one line, however often it is tried again and
//! whatever event makes it be tried; once it has been mended it is a new one.

use std::collections::BTreeSet;

use reconcile::{Pass, Stack, State};

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
    /// Writes what `pass` over `stack` did.
    pub fn write(&mut self, cause: Cause, pass: &Pass, took: Took, stack: &Stack) {
        let new: Vec<String> =
            pass.errors.iter().map(ToString::to_string).filter(|text| !self.failing.contains(text)).collect();
        for text in new.iter().take(LOGGED_ERRORS) {
            tracing::warn!("{text}");
        }
        if let Some(more) = new.len().checked_sub(LOGGED_ERRORS).filter(|more| *more > 0) {
            tracing::warn!(more, "further kernel errors; see the status");
        }
        if !self.failing.is_empty() || pass.failed > 0 {
            self.failing = failing(stack);
        }
        let milliseconds = u64::try_from(took.pass.as_millis()).unwrap_or(u64::MAX);
        let (set, removed, failed) = (pass.upserted, pass.removed, pass.failed);
        if set > 0 || removed > 0 {
            tracing::info!(cause = cause.name(), set, removed, failed, milliseconds, "kernel tables changed");
        } else if cause == Cause::Order && pass.is_idle() && pass.observed > 0 {
            tracing::info!(milliseconds, "kernel tables in sync, 0 changes");
        }
    }
}

/// The failures that go on, each as its pass says it.
fn failing(stack: &Stack) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for (name, status) in stack.status() {
        texts.extend(status.observe_error.map(|reason| format!("{name}: {reason}")));
        texts.extend(status.open.into_iter().filter_map(|row| match row.state {
            State::Failed { reason, .. } => Some(format!("{name}: {reason}")),
            State::Pending | State::Done => None,
        }));
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kernel::fake::FakeTable;
    use reconcile::Reconciler;

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
}
