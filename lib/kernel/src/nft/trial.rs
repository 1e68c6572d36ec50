//! Whether the kernel would take a table.
//!
//! Invariant: nothing is made. The transaction ends in a message that the kernel refuses, and a transaction is all or nothing; the table is
//! dormant besides.

use netstate::nft::{Family, Name, Table, TableKey};

use super::transaction::{Refusal, commit};
use super::{Nft, layout};
use crate::error::{Cause, KernelError, Nack};

/// Tables of these names are nobody's.
const TRIED: &str = "netd-tried";
const ABSENT: &str = "netd-absent";

impl Nft {
    /// False when the kernel has not all that is in `table`: it loads its modules when it can.
    ///
    /// # Errors
    /// When that cannot be found out, as without CAP_NET_ADMIN.
    pub fn would_take(&mut self, family: Family, table: &Table) -> Result<bool, KernelError> {
        let error = |cause: Cause| KernelError::new("try", "a table of nftables", cause);
        let key = |name| TableKey { family, name: Name::literal(name) };
        let change = layout::change(&key(TRIED), None, &Table { dormant: true, ..table.clone() });
        let mut messages = change.map_err(|reason| error(Cause::Unexpected(reason)))?.messages;
        let last = messages.len();
        messages.push(layout::removal(&key(ABSENT)));
        match commit(&mut self.socket, messages, None) {
            Err(Refusal::Whole(nack)) if lacks(&nack) => Ok(false),
            Err(Refusal::Messages(refused)) => {
                let others: Vec<Nack> =
                    refused.into_iter().filter(|(index, _)| *index != last).map(|(_, nack)| nack).collect();
                match others.iter().find(|nack| !lacks(nack)) {
                    // What is missing comes first: whatever follows may be refused for it.
                    Some(nack) if !others.iter().any(lacks) => Err(error(nack.clone().into())),
                    _ => Ok(others.is_empty()),
                }
            }
            Err(other) => Err(error(other.into())),
            Ok(()) => Err(error(Cause::Unexpected(format!("a table {ABSENT} was there to remove")))),
        }
    }
}

/// Whether it says that the kernel has not something: ENOENT is the answer where no module brings it.
const fn lacks(nack: &Nack) -> bool {
    matches!(nack.errno, libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)
}
