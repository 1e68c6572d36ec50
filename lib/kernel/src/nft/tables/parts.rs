//! `TableParts`: a listing of our tables that is read one set at a time.
//!
//! Invariant: it has a conversation of its own, so that the tables can be written between two parts.

use std::collections::{BTreeMap, VecDeque};

use netstate::nft::{Name, Row, RowKey, Ruleset, Set, TableKey};
use reconcile::{Observed, Owner};

use crate::error::KernelError;
use crate::nft::Nft;

/// See the module's text.
pub(super) struct TableParts {
    nft: Nft,
    keys: VecDeque<TableKey>,
    /// Sets of the table that was read last.
    sets: VecDeque<(TableKey, Name, Set)>,
}

impl TableParts {
    /// A listing of these tables.
    ///
    /// # Errors
    /// When the kernel refuses a conversation.
    pub(super) fn begin(keys: impl IntoIterator<Item = TableKey>) -> Result<Self, KernelError> {
        Ok(Self { nft: Nft::open()?, keys: keys.into_iter().collect(), sets: VecDeque::new() })
    }

    /// The static part of a table, with the chains and sets that are rows of their own.
    fn table(&mut self, key: TableKey) -> Result<Vec<(RowKey, Row)>, KernelError> {
        let Some(table) = self.nft.steady(&key, |nft| nft.table(&key))? else { return Ok(Vec::new()) };
        let sets = table.sets.iter().filter(|(_, set)| !set.is_dynamic());
        self.sets.extend(sets.map(|(name, set)| (key.clone(), name.clone(), set.clone())));
        Ok(Ruleset { key, table, elements: BTreeMap::new() }.into_rows().collect())
    }
}

impl Iterator for TableParts {
    type Item = Result<Vec<(RowKey, Observed<Row>)>, KernelError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = match self.sets.pop_front() {
            Some((key, name, set)) => {
                let mut rows = Vec::new();
                self.nft.set_rows(&key, &name, &set, &mut rows).map(|()| rows)
            }
            None => {
                let key = self.keys.pop_front()?;
                self.table(key)
            }
        };
        let ours = |(key, value)| (key, Observed { value, owner: Owner::Ours });
        Some(found.map(|rows| rows.into_iter().map(ours).collect()))
    }
}
