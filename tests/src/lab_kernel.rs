//! The lab kernel: a user-mode Linux with everything a node needs (IPVS, WireGuard, nftables, virtual time), started like a program.
//!
//! Invariant: whoever enters it does so by replacing this process with the runner (`tests/kernel/run`), so signals, output and
//! exit status are the caller's own; inside, `NETD_LAB_GUEST` is set and nothing enters a second time.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::need::{Need, check_machines};
use crate::programs::{BIN_DIR_VARIABLE, bin_dir};

/// Set inside the lab kernel by the runner.
const GUEST_VARIABLE: &str = "NETD_LAB_GUEST";
/// Path of a lab kernel to take instead of the one that `tests/kernel/build` made.
const KERNEL_VARIABLE: &str = "NETD_LAB_KERNEL";
/// `guest`: go into the lab kernel even when the running one has everything; `host`: never go there.
const WHERE_VARIABLE: &str = "NETD_LAB_WHERE";

/// What the lab kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Time after which the guest is ended and the run has failed; in guest time when virtual.
    pub limit: Duration,
    /// Memory in MiB; used as it is touched.
    pub memory: u32,
    /// The program talks with a person: it gets this terminal and no limit. Without effect when there is no terminal.
    pub terminal: bool,
    /// A folder whose files outlive the guest; made where there is none.
    pub written: Option<&'static Path>,
}

impl Default for Guest {
    /// Ten minutes and 1 GiB.
    fn default() -> Self {
        Self { limit: Duration::from_secs(600), memory: 1024, terminal: false, written: None }
    }
}

/// Makes sure that this process runs on a kernel with all of `needs`: returns when it does, or starts the same program with
/// the same arguments inside the lab kernel and never returns.
///
/// # Errors
/// When neither the running kernel nor the lab kernel will do; the message says what to run.
pub fn ensure(needs: &[Need], guest: Guest) -> Result<()> {
    let place = env::var(WHERE_VARIABLE).unwrap_or_default();
    if !["", "guest", "host"].contains(&place.as_str()) {
        bail!("{WHERE_VARIABLE}={place:?}: expected `guest`, `host` or nothing");
    }
    let inside = is_inside();
    let missing = match place.as_str() {
        "guest" if !inside => anyhow!("{WHERE_VARIABLE}=guest"),
        _ => match unmet(needs) {
            Ok(()) => return Ok(()),
            Err(missing) => missing,
        },
    };
    if inside || place == "host" {
        return Err(missing);
    }
    match locate() {
        Ok(kernel) => match enter(&kernel, needs, guest)? {},
        Err(absent) => Err(missing.context(format!("{absent:#}"))),
    }
}

/// Whether this process runs inside the lab kernel.
#[must_use]
pub fn is_inside() -> bool {
    env::var_os(GUEST_VARIABLE).is_some()
}

/// One line that names the kernel this process runs on.
#[must_use]
pub fn describe() -> String {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let kind = if is_inside() { "lab kernel (user-mode Linux)" } else { "this machine's kernel" };
    format!("{kind} {}", release.unwrap_or_else(|errno| errno.to_string()))
}

fn unmet(needs: &[Need]) -> Result<()> {
    check_machines()?;
    needs.iter().try_for_each(|need| need.check())
}

/// Path of the built lab kernel.
///
/// # Errors
/// When it has not been built, with the command that builds it.
pub fn locate() -> Result<PathBuf> {
    if let Some(path) = env::var_os(KERNEL_VARIABLE) {
        return Ok(PathBuf::from(path));
    }
    let asked = Command::new(script("build")).arg("--path").output().context("run tests/kernel/build --path")?;
    if !asked.status.success() {
        bail!("{}", String::from_utf8_lossy(&asked.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim()))
}

/// Path of a script that belongs to the lab kernel: `build`, `run`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel").join(name)
}

/// Replaces this process with the same program inside the lab kernel.
fn enter(kernel: &Path, needs: &[Need], guest: Guest) -> Result<Infallible> {
    let program = env::current_exe().context("find this program's own path")?;
    let bin_dir = bin_dir()?;
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(script("run"));
    command.arg("-k").arg(kernel).args(["-m", &format!("{}M", guest.memory)]);
    // How far fault injection goes is the caller's to say, inside as well.
    command
        .args(["-t", &guest.limit.as_secs().to_string(), "-e", "FAULTS", "-e", "FAULTS_PART"])
        .env(BIN_DIR_VARIABLE, &bin_dir);
    if needs.contains(&Need::VirtualTime) {
        command.arg("-T");
    }
    if guest.terminal && std::io::stdin().is_terminal() {
        command.arg("-I");
    }
    if let Some(folder) = guest.written {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        command.arg("-w").arg(folder);
    }
    // The guest's /tmp is empty but for what is named: a source tree or a build folder below it has to be.
    command
        .arg("-s")
        .arg(tree)
        .arg("-s")
        .arg(&bin_dir)
        .arg("--")
        .arg(&program)
        .args(env::args_os().skip(1).collect::<Vec<OsString>>());
    Err(command.exec()).with_context(|| format!("start {}", script("run").display()))
}
