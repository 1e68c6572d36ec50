//! `Spared`: the addresses of our link, of which those in excluded networks are somebody else's.
//!
//! Invariant: an address in an excluded network that this process has not put there is never removed; one that a Service asks for is
//! used as it is.

use std::collections::BTreeSet;

use kernel::KernelError;
use netstate::{Address, AddressKey, Prefix};
use reconcile::{Owner, Rows, Step, Target};

/// See the module's text.
pub(crate) struct Spared<T> {
    table: T,
    excluded: Vec<Prefix>,
    /// What this process has put into the networks.
    made: BTreeSet<AddressKey>,
}

impl<T> Spared<T> {
    /// The addresses of `table` without those in the networks.
    pub(crate) const fn new(table: T, excluded: Vec<Prefix>) -> Self {
        Self { table, excluded, made: BTreeSet::new() }
    }

    fn excludes(&self, key: &AddressKey) -> bool {
        self.excluded.iter().any(|network| network.contains(key.addr))
    }

    fn note(&mut self, step: &Step<AddressKey, Address>) {
        match step {
            Step::Create(key, _) if self.excludes(key) => drop(self.made.insert(key.clone())),
            Step::Remove(key, _) => drop(self.made.remove(key)),
            _ => {}
        }
    }
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> Target for Spared<T> {
    type Key = AddressKey;
    type Value = Address;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
        let mut rows = self.table.observe()?;
        for (_, row) in rows.iter_mut().filter(|(key, _)| self.excludes(key) && !self.made.contains(*key)) {
            row.owner = Owner::Foreign;
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        let results = self.table.apply(steps);
        for (step, _) in steps.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
            self.note(step);
        }
        results
    }
}
