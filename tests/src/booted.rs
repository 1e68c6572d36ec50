//! A machine that boots: Debian's systemd as its first process, with a disk that outlives it.
//!
//! Invariant: what was written to its files is there after the next boot, however the last one ended; processes, network, `/run` and `/tmp`
//! are new. Disk and machine end with the test, SIGKILL included: both live in namespaces of a keeper.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::command::Command;
use crate::deadline::eventually;
use crate::namespaces::Namespaces;
use crate::process::Process;
use crate::programs::bin_dir;

/// A boot on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// An orderly end on a busy machine: units have a time to stop.
const SHUTDOWN: Duration = Duration::from_secs(120);
/// Where the disk lies in the keeper's own `/run`.
const DISK: &str = "/run/disk";
/// Our programs; those that are built stand in `/usr/local/bin`.
const PROGRAMS: [&str; 4] = ["netd", "netd-cni", "ipvs-proxy", "netdadm"];

/// The part of a machine that boots.
#[derive(Debug)]
pub(crate) struct Booted {
    name: String,
    address: String,
    keeper: Arc<Namespaces>,
    /// Programs beside ours.
    programs: Vec<PathBuf>,
    running: Mutex<Option<Running>>,
}

/// From a boot to its end.
#[derive(Debug)]
struct Running {
    system: Process,
    pid: u32,
    namespaces: Arc<Namespaces>,
    journal: Option<Process>,
}

impl Booted {
    /// A machine with an empty disk, switched off; `keeper` has the files and processes around it.
    pub(crate) fn new(name: &str, address: Ipv4Addr, prefix_length: u8, keeper: Arc<Namespaces>) -> Self {
        let address = format!("{address}/{prefix_length}");
        Self { name: name.to_owned(), address, keeper, programs: Vec::new(), running: Mutex::new(None) }
    }

    /// The same with these programs of others in `/usr/local/bin`.
    pub(crate) fn with_programs(self, programs: &[PathBuf]) -> Self {
        Self { programs: programs.to_vec(), ..self }
    }

    /// Switches it on: it waits for its interface `eth0`.
    pub(crate) fn switch_on(&self) -> Result<()> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd-host");
        let command = Command::new(&self.name, Some(Arc::clone(&self.keeper)), script);
        let folder = bin_dir()?;
        let programs: Vec<PathBuf> =
            PROGRAMS.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect();
        let command = command.args([DISK, &self.name, &self.address]).args(programs).args(&self.programs);
        let system = command.start("systemd")?;
        system.wait_for_line("waits for eth0", BOOT)?;
        let pid = only_child(system.pid())?;
        let namespaces = Arc::new(Namespaces::of_process(pid)?);
        *self.lock() = Some(Running { system, pid, namespaces, journal: None });
        Ok(())
    }

    /// Waits until every unit of the boot has started, and follows the journal from then on.
    pub(crate) fn wait_until_running(&self) -> Result<()> {
        let booted = eventually(BOOT, || {
            let state = self.command("systemctl")?.arg("is-system-running").output()?.stdout;
            match state.trim() {
                "running" => Ok(Ok(())),
                // The boot is over, and a unit has failed.
                "degraded" => Ok(Err(anyhow!("the system is degraded"))),
                state => Err(anyhow!("the system is {state:?}")),
            }
        });
        let journal = self.command("journalctl")?.args(["--boot", "--no-hostname", "--follow", "--lines=all"]);
        let journal = journal.start("journal")?;
        if let Some(running) = self.lock().as_mut() {
            running.journal = Some(journal);
        }
        booted.and_then(|outcome| outcome).with_context(|| format!("boot {}: {}", self.name, self.failed_units()))
    }

    /// The units that have failed, each with its last lines; for a message.
    fn failed_units(&self) -> String {
        let print = |program: &str, words: &[&str]| match self.command(program).and_then(|c| c.args(words).output()) {
            Ok(output) => output.stdout,
            Err(error) => format!("{error:#}"),
        };
        let failed = print("systemctl", &["--failed", "--no-legend", "--plain"]);
        let names = failed.lines().filter_map(|line| line.split(' ').next());
        names
            .map(|name| format!("{name} failed\n{}", print("journalctl", &["--boot", "--lines=10", "--unit", name])))
            .collect()
    }

    /// Asks for an end in order, as a person at the power button does, and waits for it.
    pub(crate) fn shut_down(&self) -> Result<()> {
        // The answer is cut off by the end itself.
        let _ = self.command("systemctl")?.args(["poweroff", "--no-wall"]).output();
        self.end(|system| system.wait(SHUTDOWN).map(drop))
    }

    /// Ends it at once, as the loss of its power does.
    pub(crate) fn cut_power(&self) -> Result<()> {
        self.end(Process::kill)
    }

    /// PID of systemd as the test numbers it; 0 while it is switched off.
    pub(crate) fn pid(&self) -> u32 {
        self.lock().as_ref().map_or(0, |running| running.pid)
    }

    /// The machine's namespaces; none while it is switched off.
    pub(crate) fn namespaces(&self) -> Option<Arc<Namespaces>> {
        self.lock().as_ref().map(|running| Arc::clone(&running.namespaces))
    }

    fn command(&self, program: &str) -> Result<Command> {
        let namespaces = self.namespaces().with_context(|| format!("{} is switched off", self.name))?;
        Ok(Command::new(&self.name, Some(namespaces), program))
    }

    fn end(&self, by: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let Some(running) = self.lock().take() else { bail!("{} is switched off already", self.name) };
        by(&running.system)?;
        let Running { pid, journal, namespaces, .. } = running;
        // An open namespace would keep the mounted disk and the cable.
        drop((journal, namespaces));
        eventually(SHUTDOWN, || {
            let left = Path::new("/proc").join(pid.to_string());
            if left.exists() { Err(anyhow!("process {pid} of {} is still there", self.name)) } else { Ok(()) }
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one child of a process, which the caller knows to be there.
fn only_child(parent: i32) -> Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    children.trim().parse().with_context(|| format!("{path}: {children:?}"))
}
