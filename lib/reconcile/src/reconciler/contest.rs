//! `Contest`: a row that somebody else keeps changing.
//!
//! Invariant: a row is put back at once a few times, then ever more slowly, so that two programs never fight at full speed.

use std::time::Duration;

use crate::retry;
use crate::status::CONTESTED;
use crate::target::RetryClass;

/// A row is put back this often at once; then whoever undoes it makes it wait as a row that fails does.
const PATIENCE: u32 = 3;

/// A row that was left alone for so long, beyond its pause, is not contested any more.
pub(super) const PEACE: Duration = Duration::from_secs(10);

/// How often a row was put back that somebody else had changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contest {
    pub(super) times: u32,
    pub(super) last: Duration,
}

impl Contest {
    /// The time until the row is put back once more.
    pub(super) fn pause(self) -> Duration {
        let beyond = self.times.saturating_sub(PATIENCE);
        if beyond == 0 { Duration::ZERO } else { retry::delay(beyond, RetryClass::Retry) }
    }

    /// When the row is put back once more.
    pub(super) fn next(self) -> Duration {
        self.last.saturating_add(self.pause())
    }
}

/// What is said of it; `rival` is who may be behind it.
pub(super) fn contested(contest: Contest, rival: Option<String>) -> String {
    let (times, pause) = (contest.times, contest.pause().as_secs_f32());
    let who = rival.map(|rival| format!(", probably {rival},")).unwrap_or_default();
    format!("{CONTESTED}{who} has undone it {times} times in a row; it is put back after {pause:.1} s")
}
