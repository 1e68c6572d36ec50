//! When the subnet file is put right: at once where somebody else changed it, ever more slowly for who keeps changing it, soon where the system
//! refused it.
//!
//! Invariant: who keeps changing it costs less and less; what the system refused is no change of anybody's.

use std::time::Duration;

use tokio::time::Instant;

/// How often somebody else has changed the subnet file lately, and when it is put right once more.
#[derive(Debug, Default)]
pub(super) struct FileContest {
    pub(super) times: u32,
    last: Option<Instant>,
    pub(super) at: Option<Instant>,
    /// It could not be written or removed: that is tried again, and nobody has changed it.
    pub(super) failed: bool,
}

/// The subnet file is put right this often at once; then whoever changes it makes it wait.
pub(super) const PATIENCE: u32 = 3;

/// A file that was left alone for so long, beyond its pause, is not contested any more.
const PEACE: Duration = Duration::from_secs(10);

/// What could not be written is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// Longest pause before a contested file is put right.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl FileContest {
    /// The time until it is put right once more.
    fn pause(&self) -> Duration {
        let beyond = self.times.saturating_sub(PATIENCE).min(7);
        if beyond == 0 { Duration::ZERO } else { LONGEST_PAUSE.min(Duration::from_millis(500) * 2_u32.pow(beyond)) }
    }

    /// It differs at `now`.
    pub(super) fn note(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.duration_since(last) > self.pause() + PEACE) {
            self.times = 0;
        }
        let pause = self.pause();
        self.at.get_or_insert(now + pause);
    }

    /// The system refused it at `now`.
    pub(super) fn fail(&mut self, now: Instant) {
        self.failed = true;
        self.at = Some(now + AGAIN);
    }

    /// It was put right at `now`.
    pub(super) const fn repaired(&mut self, now: Instant) {
        self.times = self.times.saturating_add(1);
        self.last = Some(now);
    }
}
