//! flannel's rules alone, on a node where netd works in flannel's place.
//!
//! Invariant: nothing else is touched, so a daemon of ours may run meanwhile: it has rules of its own for what these did.

use anyhow::Result;
use daemon::lifecycle::Exit;
use daemon::terminal;
use kernel::nft::Nft;

use super::flannel;

/// Lists them, and removes them if that is asked for.
///
/// # Errors
/// When the kernel cannot be read or refuses; what is removed by then stays removed.
pub(super) fn act(yes: bool) -> Result<Exit> {
    let mut nft = Nft::open()?;
    let mut tables = Vec::new();
    for table in flannel::nft_tables() {
        if nft.has_table(&table)? {
            tables.push(table);
        }
    }
    let mut found: Vec<String> = tables.iter().map(|table| format!("nft table {table}")).collect();
    found.extend(flannel::chains(&mut nft)?);
    for row in &found {
        terminal::put(&format!("{row}\n"))?;
    }
    if let Some(commands) = flannel::legacy() {
        terminal::put(&format!(
            "not within reach, in a table of iptables-legacy; these commands remove it:\n{commands}\n"
        ))?;
    }
    if found.is_empty() {
        terminal::put("no rule of flannel's is here\n")?;
    } else if yes {
        for table in &tables {
            nft.remove_foreign_table(table)?;
        }
        flannel::remove_chains(&mut nft)?;
        terminal::put("removed\n")?;
    } else {
        terminal::put("nothing is removed yet: --yes does\n")?;
    }
    Ok(Exit::Success)
}
