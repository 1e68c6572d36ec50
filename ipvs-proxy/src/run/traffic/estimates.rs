//! `Estimates`: the kernel puts together what virtual servers count, for as long as somebody asks.
//!
//! What each processor counts comes into the listing with the estimates of rates, every two seconds, and they cost time that grows with the
//! servers; so they are off at the start (Linux 6.2, `net.ipv4.vs.run_estimation`). Nothing that was counted meanwhile is lost: the next
//! estimate has it. Invariant: whoever else turned them on keeps them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use netstate::SysctlKey;

use super::locked;

/// Whether the kernel estimates.
pub(in crate::run) const ESTIMATION: &str = "net/ipv4/vs/run_estimation";

/// How long they go on when nobody asks any more: Prometheus asks every minute or more often.
const LINGER: Duration = Duration::from_secs(300);

/// Who had them begin, and when somebody last asked.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    /// We did.
    ours: bool,
    asked: Option<Instant>,
}

impl Estimates {
    /// Somebody asks; `on` is what the parameter says. Returns whether it is to be turned on.
    fn ask(&mut self, now: Instant, on: bool) -> bool {
        self.asked = Some(now);
        let begin = !on;
        self.ours |= begin;
        begin
    }

    /// How long they shall go on if nobody asks again.
    fn left(&self, now: Instant) -> Duration {
        let since = self.asked.map(|asked| now.saturating_duration_since(asked));
        since.map_or(Duration::ZERO, |since| LINGER.saturating_sub(since))
    }
}

/// Has the kernel estimate from now on. Must be called on a tokio runtime.
pub(super) fn run(estimates: &Arc<Mutex<Estimates>>) {
    // Older kernels have not the parameter, and estimate always.
    let Some((key, on)) = parameter() else { return };
    let mut inside = locked(estimates);
    if !inside.ask(Instant::now(), on) {
        return;
    }
    drop(inside);
    if let Err(error) = kernel::sysctl::write(&key, "1") {
        tracing::info!(error = %kernel::Chain(&error), "packets and bytes of virtual servers are not put together");
        return;
    }
    tokio::spawn(end(Arc::clone(estimates)));
}

/// Ends them when nobody has asked for a while.
async fn end(estimates: Arc<Mutex<Estimates>>) {
    loop {
        let left = locked(&estimates).left(Instant::now());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left).await;
    }
    let ours = std::mem::take(&mut locked(&estimates).ours);
    if let Some((key, true)) = parameter().filter(|_| ours)
        && let Err(error) = kernel::sysctl::write(&key, "0")
    {
        tracing::info!(error = %kernel::Chain(&error), "rates of virtual servers go on being estimated");
    }
}

/// The parameter, and whether it is on.
fn parameter() -> Option<(SysctlKey, bool)> {
    let key = ESTIMATION.parse::<SysctlKey>().ok()?;
    let value = kernel::sysctl::read(&key).ok()?;
    Some((key, value != "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_go_on_while_somebody_asks_and_end_a_while_later() {
        let (mut estimates, begin) = (Estimates::default(), Instant::now());
        assert!(estimates.left(begin).is_zero(), "nobody asked");
        assert!(estimates.ask(begin, false), "they are off");
        let again = begin + Duration::from_secs(60);
        assert!(!estimates.ask(again, true), "they run");
        assert_eq!(estimates.left(begin + LINGER), Duration::from_secs(60));
        assert!(estimates.left(again + LINGER).is_zero());
        assert!(estimates.ours);
    }

    #[test]
    fn estimates_that_somebody_else_turned_on_stay_his() {
        let mut estimates = Estimates::default();
        assert!(!estimates.ask(Instant::now(), true));
        assert!(!estimates.ours);
    }
}
