//! What the clients of this process have at the moment, of one kind.
//!
//! Invariant: a value counts from the moment at which a client takes it until that client drops its [`Entry`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// See the module's text.
pub(crate) struct Registry<T: 'static>(Mutex<Vec<(u64, T)>>);

/// What one client has taken; dropped with it. Its values are never formatted.
pub(crate) struct Entry<T: 'static> {
    registry: &'static Registry<T>,
    number: u64,
}

impl<T> std::fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.number)
    }
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The values that count, each with the number of its entry.
    pub(crate) fn values(&self) -> MutexGuard<'_, Vec<(u64, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has these count.
    pub(crate) fn take(&'static self, values: impl IntoIterator<Item = T>) -> Entry<T> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.values().extend(values.into_iter().map(|value| (number, value)));
        Entry { registry: self, number }
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.registry.values().retain(|(number, _)| *number != self.number);
    }
}
