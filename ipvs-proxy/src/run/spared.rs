//! `Spared`: the addresses of our link, of which those in excluded networks are somebody else's.
//!
//! Invariant: an address in an excluded network that this process has not put there is never removed; one that a Service asks for is
//! used as it is.

use std::collections::BTreeSet;

use kernel::KernelError;
use netstate::{Address, AddressKey, Prefix};
use reconcile::{Layer, Observed, Owner, PartsOf, Rows, Step, Target};

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
        is_in(&self.excluded, key)
    }

    fn note(&mut self, step: &Step<AddressKey, Address>) {
        match step {
            Step::Create(key, _) if self.excludes(key) => drop(self.made.insert(key.clone())),
            Step::Remove(key, _) => drop(self.made.remove(key)),
            _ => {}
        }
    }
}

fn is_in(networks: &[Prefix], key: &AddressKey) -> bool {
    networks.iter().any(|network| network.contains(key.addr))
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> Layer for Spared<T> {
    type Inner = T;

    fn inner(&self) -> &T {
        &self.table
    }

    fn inner_mut(&mut self) -> &mut T {
        &mut self.table
    }

    fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
        let mut rows = self.table.observe()?;
        for (_, row) in rows.iter_mut().filter(|(key, _)| self.excludes(key) && !self.made.contains(*key)) {
            row.owner = Owner::Foreign;
        }
        Ok(rows)
    }

    fn parts(&mut self) -> Result<Option<PartsOf<Self>>, KernelError> {
        let (excluded, made) = (self.excluded.clone(), self.made.clone());
        let is_theirs = move |key: &AddressKey| is_in(&excluded, key) && !made.contains(key);
        let spare = move |(key, mut row): (AddressKey, Observed<Address>)| {
            if is_theirs(&key) {
                row.owner = Owner::Foreign;
            }
            (key, row)
        };
        let parts = self.table.parts()?;
        Ok(parts.map(|parts| -> PartsOf<Self> {
            Box::new(parts.map(move |part| part.map(|rows| rows.into_iter().map(&spare).collect())))
        }))
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        let results = self.table.apply(steps);
        for (step, _) in steps.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
            self.note(step);
        }
        results
    }
}
