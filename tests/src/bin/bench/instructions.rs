//! The IPVS path on Debian's own kernel, counted in instructions: the part of the proxy, run again as it is inside QEMU.
//!
//! Invariant: nothing is measured here. The machine of `tests/qemu/run` has a clock of instructions, so what the part prints as
//! milliseconds there are millions of instructions, of the proxy and of its floor alike.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::report::Report;

/// Runs the part with `words` inside.
///
/// # Errors
/// When the machine does not start, or the part fails in it.
pub(crate) fn measure(report: &Report, words: &[String]) -> Result<()> {
    report.title("ipvs-proxy on ipvs, in instructions");
    report.text(
        "Debian's own kernel on a processor that QEMU plays, whose clock goes on by a nanosecond with each instruction of whichever process \
         and of the kernel: read each millisecond as a million instructions.",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu/run");
    let program = std::env::current_exe().context("find this program's own path")?;
    let mut machine = Command::new(script);
    for beside in ["ipvs-proxy", "proxy-floor"] {
        machine.arg("-p").arg(lab::bin(beside)?);
    }
    machine.arg("--").arg(program);
    let status = machine.args(words).args(["--only", "proxy-ipvs"]).status().context("start tests/qemu/run")?;
    ensure!(status.success(), "the part in instructions: {status}");
    Ok(())
}
