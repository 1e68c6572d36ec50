//! Debian's containerd on one machine, driven by its `ctr`.
//!
//! Invariant: the daemon ends with its value. Containers run under `crun` without control groups and on copies of files
//! (snapshotter `native`), so they need nothing of the kernel but namespaces.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Command, Host, Process, eventually};

use super::image;

const CONFIG: &str = r#"
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
"#;
const CONFIG_FILE: &str = "/run/containerd.toml";

/// What `ctr` has no use for.
const WITHOUT_CRI: &str = r#"disabled_plugins = ["io.containerd.grpc.v1.cri"]"#;

pub(crate) const RUNTIME: &str = "/run/crun-without-cgroups";

/// crun reads the processes of a container from its control group. A container without any is none that runs to containerd 1.7, which forgets
/// it when it is started again: so the first process is named.
const RUNTIME_SCRIPT: &str = r#"#!/bin/sh
words="$*"
case " $words " in
*' ps '*)
  first=$(crun --cgroup-manager=disabled ${words%% ps *} state "${words##* }" | sed -n 's/.*"pid": *\([1-9][0-9]*\).*/\1/p')
  echo "[$first]"
  ;;
*) exec crun --cgroup-manager=disabled "$@" ;;
esac
"#;
const LIMIT: Duration = Duration::from_secs(60);

/// Why containerd cannot be run here.
pub(crate) fn obstacle() -> Option<String> {
    super::missing(&["containerd", "ctr", "crun", "busybox", "curl"])
}

/// A running containerd.
pub(crate) struct Containerd {
    host: Host,
    daemon: Process,
}

/// A container in the foreground: `ctr` waits for it and deletes its network when it ends.
pub(crate) struct Foreground {
    name: String,
    ctr: Process,
}

impl Containerd {
    /// Starts the daemon and loads the image, for `ctr`.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, WITHOUT_CRI)
    }

    /// Starts the daemon with further lines of configuration.
    pub(crate) fn start_with(host: &Host, config: &str) -> Result<Self> {
        host.write(CONFIG_FILE, format!("{CONFIG}{config}"))?;
        host.write(RUNTIME, RUNTIME_SCRIPT)?;
        fs::set_permissions(host.path(RUNTIME), fs::Permissions::from_mode(0o755))?;
        image::build(host)?;
        let containerd = Self { host: host.clone(), daemon: launch(host)? };
        containerd.serves()?;
        containerd.ctr(&["images", "import", "--snapshotter=native", image::ARCHIVE])?;
        Ok(containerd)
    }

    fn serves(&self) -> Result<()> {
        eventually(LIMIT, || {
            ensure!(self.daemon.is_running(), "containerd has ended");
            self.ctr(&["version"]).map(drop)
        })
    }

    /// The daemon.
    pub(crate) const fn process(&self) -> &Process {
        &self.daemon
    }

    /// Starts the daemon again where it has ended; its containers have gone on.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.daemon = launch(&self.host)?;
        self.serves()
    }

    fn command(&self, words: &[&str]) -> Command {
        self.host.command("ctr").args(words).limit(LIMIT)
    }

    /// Runs `ctr` to its end and gives what it printed.
    pub(crate) fn ctr(&self, words: &[&str]) -> Result<String> {
        Ok(self.command(words).run()?.stdout.trim().to_owned())
    }

    fn run(&self, name: &str, mode: &str) -> Command {
        let cni = ["--cni", "--snapshotter=native", "--cgroup=", "--runc-binary", RUNTIME, image::NAME, name];
        self.command(&["run", mode]).args(cni)
    }

    /// Starts a container whose network `ctr` deletes when it ends.
    pub(crate) fn foreground(&self, name: &str) -> Result<Foreground> {
        let ctr = self.run(name, "--rm").start(&format!("ctr run {name}"))?;
        let container = Foreground { name: name.to_owned(), ctr };
        eventually(LIMIT, || {
            ensure!(container.ctr.is_running(), "ctr has ended");
            let tasks = self.ctr(&["tasks", "list"])?;
            let runs = tasks.lines().any(|line| line.starts_with(name) && line.ends_with("RUNNING"));
            ensure!(runs, "{tasks}");
            Ok(())
        })?;
        Ok(container)
    }

    /// Starts a container that `ctr` does not wait for.
    pub(crate) fn detached(&self, name: &str) -> Result<()> {
        self.run(name, "--detach").run().map(drop)
    }

    /// Kills a container's process. Since 1.7 `ctr tasks kill` deletes the network besides, whoever waits for the container to do that.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        let tasks = self.ctr(&["tasks", "list"])?;
        let mut rows = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.first() == Some(&name)).with_context(|| format!("no task {name}: {tasks}"))?;
        let number = row.get(1).with_context(|| format!("no process of {name}: {tasks}"))?;
        self.host.run(&["sh", "-c", &format!("kill -KILL {number}")]).map(drop)
    }

    /// Kills a container and waits until `ctr` has cleaned up after it.
    pub(crate) fn end(&self, container: &Foreground) -> Result<()> {
        self.kill(&container.name)?;
        container.ctr.wait(LIMIT)?;
        let log = container.ctr.log();
        ensure!(!log.contains("failed"), "ctr could not clean up: {log}");
        Ok(())
    }

    /// Runs a program in a container.
    pub(crate) fn exec(&self, name: &str, words: &[&str]) -> Result<String> {
        self.ctr(&[&["tasks", "exec", "--exec-id", "question", name], words].concat())
    }

    /// The address of a container's `eth0`.
    pub(crate) fn address(&self, name: &str) -> Result<Ipv4Addr> {
        printed(|| {
            let printed = self.exec(name, &["ip", "-o", "-4", "address", "show", "dev", "eth0"])?;
            let address = printed.split_whitespace().nth(3).and_then(|address| address.split('/').next());
            address.and_then(|address| address.parse().ok()).with_context(|| format!("address of {name}: {printed:?}"))
        })
    }

    /// What the server at `url` answers to a container, as [`super::ask`].
    pub(crate) fn ask(&self, name: &str, url: &str) -> Result<String> {
        printed(|| image::answer(&self.exec(name, &image::question(url))?))
    }
}

fn launch(host: &Host) -> Result<Process> {
    host.command("containerd").args(["--config", CONFIG_FILE]).start("containerd")
}

/// What a program in a container printed. `ctr` loses the output of one that ends before its streams are attached.
pub(crate) fn printed<T>(exec: impl FnMut() -> Result<T>) -> Result<T> {
    eventually(LIMIT, exec)
}
