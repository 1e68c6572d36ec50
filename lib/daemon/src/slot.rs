//! `Slot`: room for one value between two loops; `locked`: what several threads share.
//!
//! Invariant: whatever is put in, at most one value waits; what comes while one waits is merged with it, so a flood costs
//! no memory, and the one who takes finds the last state.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The value of `mutex`. A thread that panicked while it held it ends the program, or its value is as good as before.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module's text.
#[derive(Debug)]
pub struct Slot<T> {
    value: Mutex<Option<T>>,
    filled: Notify,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { value: Mutex::new(None), filled: Notify::new() }
    }
}

impl<T> Slot<T> {
    /// Puts `value` in the place of what waits.
    pub fn put(&self, value: T) {
        self.merge(|_| value);
    }

    /// Puts in what `merged` makes of the value that waits, if one does.
    pub fn merge(&self, merged: impl FnOnce(Option<T>) -> T) {
        let mut value = self.lock();
        *value = Some(merged(value.take()));
        drop(value);
        self.filled.notify_one();
    }

    /// Waits for a value and takes it out. Cancel-safe; for one loop at a time.
    pub async fn take(&self) -> T {
        loop {
            let filled = self.filled.notified();
            if let Some(value) = self.lock().take() {
                return value;
            }
            filled.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        locked(&self.value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn one_value_waits_and_is_what_was_made_of_all() {
        let slot = Arc::new(Slot::<u64>::default());
        for number in 1..=1000 {
            slot.merge(|before| before.unwrap_or_default() + number);
        }
        assert_eq!(slot.take().await, 500_500);
        slot.put(1);
        slot.put(2);
        assert_eq!(slot.take().await, 2);
        let (filling, taking) = (Arc::clone(&slot), async { slot.take().await });
        let (_, taken) = tokio::join!(async move { filling.put(3) }, taking);
        assert_eq!(taken, 3);
    }

    #[tokio::test]
    async fn value_is_not_lost_with_the_one_who_gave_up_waiting() {
        let slot = Slot::default();
        tokio::select! {
            biased;
            () = async { slot.take().await } => panic!("nothing was put in"),
            () = async { slot.put(()) } => {}
        }
        slot.take().await;
    }
}
