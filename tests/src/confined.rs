//! What a process has given up (proc(5)).
//!
//! Invariant: every thread counts: one that kept something would give it to whoever takes the process over.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::Process;

/// CAP_NET_ADMIN in the kernel's masks (capabilities(7)).
const NET_ADMIN: &str = "0000000000001000";
const NONE: &str = "0000000000000000";

/// Fails unless each thread of `process` has CAP_NET_ADMIN alone, for ever, and a filter of calls where the kernel has such.
///
/// # Errors
/// When one has more, naming it, or the process is gone.
pub fn ensure_confined(process: &Process) -> Result<()> {
    let folder = format!("/proc/{}/task", process.pid());
    let filters = fs::exists("/proc/sys/kernel/seccomp")?;
    let mut threads = 0;
    for thread in fs::read_dir(&folder).with_context(|| folder.clone())? {
        let text = fs::read_to_string(thread?.path().join("status"))?;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        for (name, wanted) in [("CapInh", NONE), ("CapAmb", NONE), ("NoNewPrivs", "1")] {
            ensure!(field(name) == Some(wanted), "{name} is not {wanted}:\n{text}");
        }
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            ensure!(field(name) == Some(NET_ADMIN), "{name} is not {NET_ADMIN}:\n{text}");
        }
        ensure!(!filters || field("Seccomp") == Some("2"), "no filter of calls:\n{text}");
        threads += 1;
    }
    ensure!(threads > 1, "{folder} has {threads} threads");
    Ok(())
}
