//! `netd cleanup`: takes away what this program put into the kernel, and on request what flannel left.
//!
//! Invariants: without `--yes` nothing is changed; while a daemon of this network runs nothing is either, but for flannel's rules; whose a row is
//! follows the records and the names by which the daemon knows its own, so what is somebody else's stays.

mod files;
mod flannel;
mod rules;
mod tables;

use anyhow::{Context, Result, bail};
use daemon::lifecycle::Exit;
use daemon::status::Lines;
use daemon::terminal;

use self::tables::Leftovers;
use crate::command::args::Flags;
use crate::command::config::run_dir;
use crate::command::instance::Instance;
use crate::command::verbs::Cleanup;
use crate::plan::backend::Backend;
use crate::run::claim::Claimed;

/// Lists what there is, and removes it if that is asked for.
///
/// # Errors
/// When a daemon runs, or the kernel cannot be read.
pub(super) fn act(options: &Cleanup, flags: &Flags) -> Result<Exit> {
    if (options.flannel || options.flannel_rules)
        && let Some(process) = flannel::process()
    {
        bail!("flanneld runs with process {process} and would put everything back: stop it first");
    }
    if options.flannel_rules {
        return rules::act(options.yes);
    }
    let (subnet_file, folder) = (std::path::Path::new(&flags.subnet_file), run_dir(flags));
    let claimed = Claimed::take_for_cleanup(subnet_file, &folder)?;
    if let Some(network) = claimed.unseen().context("look for daemons of this network namespace")? {
        bail!(
            "netd runs with {network} in this network namespace, and {} here does not name it (is this a container, or was the folder \
             removed?): stop it first",
            folder.display()
        );
    }
    let mut leftovers = Leftovers::find(&Instance::of(subnet_file), &folder, &claimed, options.flannel, subnet_file)?;
    let mut others = vec![flags.subnet_file.as_str()];
    // A key that another network of this host goes by is not this one's, though the flag names it for both.
    if !claimed.others_devices().iter().any(Backend::has_key) {
        others.push(&flags.wireguard_key_file);
    }
    let files = if options.files { files::present(&folder, &others) } else { Vec::new() };
    let mut lines = Lines::new();
    for row in leftovers.rows() {
        lines.push(format_args!("{row}"));
    }
    for file in &files {
        lines.push(format_args!("file {}", file.display()));
    }
    let text = lines.into_text();
    terminal::put(&text)?;
    let legacy = if options.flannel { flannel::legacy() } else { None };
    if let Some(commands) = &legacy {
        terminal::put(&format!(
            "not within reach, in a table of iptables-legacy; these commands remove it:\n{commands}\n"
        ))?;
    }
    if text.is_empty() {
        terminal::put("nothing of this program's is here\n")?;
        return Ok(Exit::Success);
    }
    if !options.yes {
        terminal::put("nothing is removed yet: --yes does\n")?;
        return Ok(Exit::Success);
    }
    let failed = leftovers.remove()?;
    for failure in &failed {
        terminal::note(&format!("netd: {failure}"));
    }
    // What is recorded is known as ours only as long as it is recorded.
    if failed.is_empty() {
        files::remove(&files, &folder)?;
        terminal::put("removed\n")?;
        return Ok(Exit::Success);
    }
    Ok(Exit::Failure)
}
