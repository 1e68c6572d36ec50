//! Asks paths all the time, by chance and those that failed again until they answer.
//!
//! Invariant: each answer is judged by its payload, which names the server; a path that nobody wants any more is judged by nothing.

use std::time::Duration;

use crate::bounds;
use crate::ledger::{Failure, Probe};
use crate::paths::Path;
use crate::shared::{Shared, Violation};

/// Threads that ask.
pub(crate) const PROBERS: usize = 3;

/// Pause of each between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// How long an answer may take where the path must work, on an idle machine: a lost first packet is sent again after a second.
const ANSWER: Duration = Duration::from_secs(3);

/// The same where it may fail.
const IMPATIENT: Duration = Duration::from_millis(900);

/// Pause until a path that failed is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// The name under which paths are reported.
pub(crate) const PATHS: &str = "paths within their bound";

/// Asks until the end.
pub(crate) fn run(shared: &Shared, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !shared.ends() {
        std::thread::sleep(PAUSE);
        if let Some(path) = choose(shared, &mut random) {
            ask(shared, &path);
        }
    }
}

fn choose(shared: &Shared, random: &mut fastrand::Rng) -> Option<Path> {
    let now = shared.now();
    let mut state = shared.lock();
    if let Some(index) = state.failing.iter().position(|(at, _)| *at <= now) {
        return Some(state.failing.swap_remove(index).1);
    }
    let mut path = random.choice(state.paths())?;
    path.udp = random.bool();
    Some(path)
}

/// Asks one path and takes the answer in; true when it is as it must be.
pub(crate) fn ask(shared: &Shared, path: &Path) -> bool {
    let scale = bounds::scale();
    let began = shared.now();
    let resolved = {
        let state = shared.lock();
        let Some((station, address, needs)) = state.resolve(path) else { return true };
        let settled = state.ledger.due(&needs, scale).is_some_and(|due| began >= due);
        (station, address, if settled { ANSWER.mul_f64(scale) } else { IMPATIENT })
    };
    let (station, address, limit) = resolved;
    let answer = station.ask(address, path.udp, limit);
    drop(station);
    let ended = shared.now();
    let mut state = shared.lock();
    let Some((_, current, needs)) = state.resolve(path) else { return true };
    let failure = match answer {
        Ok(answer) if state.may_answer(path, &answer.name, began, scale) => None,
        Ok(_) if current != address => return true,
        Ok(answer) => Some(Failure::Wrong(answer.name)),
        Err(error) => Some(Failure::Silence(format!("{:#}", error.root_cause()))),
    };
    let passed = failure.is_none();
    if !passed {
        state.failing.retain(|(_, other)| other != path);
        state.failing.push((ended + AGAIN, path.clone()));
    }
    let probe = Probe { path: path.text(), needs, began, ended, failure };
    *state.checks.entry(PATHS).or_default() += 1;
    if let Some(text) = state.ledger.judge(&probe, scale) {
        state.violations.push(Violation { at: ended, invariant: PATHS, text });
    }
    passed
}
