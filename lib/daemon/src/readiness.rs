//! `Readiness`: named gates that must all have opened once before the daemon calls itself ready.
//!
//! Invariants: a gate that has opened stays open, so readiness is reached once and is no alarm; what is still awaited can
//! be read at any time, by any thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The gates; clones are the same gates.
#[derive(Debug, Clone)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

/// Where a gate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Open,
    /// What is missing.
    Awaited(String),
}

impl Readiness {
    /// Gates that are all closed.
    pub fn new(names: impl IntoIterator<Item = &'static str>) -> Self {
        let gates = names.into_iter().map(|name| (name, State::Awaited(String::new()))).collect();
        Self { gates: Arc::new(Mutex::new(gates)) }
    }

    /// Opens `name`. Returns whether that was the last closed gate.
    pub fn open(&self, name: &str) -> bool {
        let mut gates = self.lock();
        match gates.get_mut(name) {
            Some(state @ State::Awaited(_)) => *state = State::Open,
            _ => return false,
        }
        gates.values().all(|state| *state == State::Open)
    }

    /// Notes what `name` waits for, unless it is open.
    pub fn await_for(&self, name: &str, reason: &str) {
        if let Some(State::Awaited(awaited)) = self.lock().get_mut(name)
            && awaited != reason
        {
            reason.clone_into(awaited);
        }
    }

    /// True when every gate has opened.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|state| *state == State::Open)
    }

    /// The gates that are closed, as `name` or `name: what is missing`.
    #[must_use]
    pub fn awaited(&self) -> Vec<String> {
        let gates = self.lock();
        let closed = gates.iter().filter_map(|(name, state)| match state {
            State::Open => None,
            State::Awaited(reason) if reason.is_empty() => Some((*name).to_owned()),
            State::Awaited(reason) => Some(format!("{name}: {reason}")),
        });
        closed.collect()
    }

    /// Every gate with whether it is open, in order of the names.
    #[must_use]
    pub fn gates(&self) -> Vec<(&'static str, bool)> {
        self.lock().iter().map(|(name, state)| (*name, *state == State::Open)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_with_the_last_gate_and_says_so_once() {
        let readiness = Readiness::new(["sources", "monitors", "tables"]);
        assert!(!readiness.open("sources"));
        assert!(!readiness.open("monitors"));
        readiness.await_for("tables", "routes: 3 of 10 rows in place");
        assert_eq!(readiness.awaited(), ["tables: routes: 3 of 10 rows in place"]);
        assert!(!readiness.is_ready());
        assert!(!readiness.open("unknown"));
        assert!(readiness.open("tables"));
        assert!(readiness.is_ready());
        assert!(!readiness.open("tables"), "once");
    }

    #[test]
    fn an_open_gate_stays_open() {
        let readiness = Readiness::new(["tables"]);
        readiness.clone().open("tables");
        readiness.await_for("tables", "something changed");
        assert_eq!(readiness.awaited(), Vec::<String>::new());
        assert_eq!(readiness.gates(), [("tables", true)]);
    }
}
