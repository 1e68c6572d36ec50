//! Taking everything of ours out of the kernel: for a node that is leaving, never at an ordinary end.
//!
//! Invariant: only what is ours goes: our link with its addresses, the virtual servers that our record names, our nft
//! table; in this order, and the record last, so that a clean-up that was interrupted can be done again.

use kernel::Rtnl;
use kernel::ipvs::{Ipvs, IpvsTable};
use kernel::nft::{Nft, Tables};
use kernel::{Cause, KernelError};
use reconcile::{Owner, Step, Target};

use super::{addresses, link};
use crate::dataplane::table as nft;

/// Removes everything; returns how many virtual servers went.
///
/// # Errors
/// The first thing that the kernel refused to give up.
pub(crate) fn cleanup() -> anyhow::Result<usize> {
    let link = link()?;
    let removed = match Ipvs::open() {
        Ok(mut ipvs) => {
            let owned = addresses::owned(&mut ipvs, &link)?;
            Rtnl::open()?.delete_link(&link)?;
            remove_ours(&mut IpvsTable::new(ipvs, owned))?
        }
        Err(KernelError { cause: Cause::Missing(_), .. }) => {
            Rtnl::open()?.delete_link(&link)?;
            0
        }
        Err(error) => return Err(error.into()),
    };
    remove_ours(&mut Tables::new(Nft::open()?, [nft::table_key()]))?;
    Ok(removed)
}

/// Removes every row of `table` that is ours.
fn remove_ours<T: Target<Error = KernelError>>(table: &mut T) -> Result<usize, KernelError> {
    let rows = table.observe()?.into_iter().filter(|(_, row)| row.owner == Owner::Ours);
    let steps: Vec<_> = rows.map(|(key, row)| Step::Remove(key, row.value)).collect();
    let count = steps.len();
    table.apply(&steps).into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(count)
}
