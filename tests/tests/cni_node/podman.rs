//! Debian's podman on one machine: to build images, and with its CNI back end where it has one.
//!
//! Invariant: podman finds the machine's own plugins only, works without control groups, and stores copies of files (`vfs`),
//! so it needs nothing of the kernel but namespaces.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Absent, Command, Host};

use super::image;

const CONFIG: &str = r#"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
"#;

const CNI: &str = r#"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "cbr0"
"#;

/// A first start unpacks and sets up its database; generous for a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Why podman cannot be run here.
pub(crate) fn obstacle() -> Option<String> {
    super::missing(&["podman", "conmon", "crun", "busybox"])
}

/// Why it cannot be run with CNI here: podman 5, which Debian 13 has, knows netavark only.
pub(crate) fn obstacle_of_cni() -> Option<Absent> {
    obstacle().map(Absent::Missing).or_else(|| {
        let output = std::process::Command::new("podman").arg("--version").output().ok()?;
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let major: u32 = printed.rsplit(' ').next()?.split('.').next()?.parse().ok()?;
        let reason = format!("{printed} has no CNI back end any more; Debian 12 has podman 4");
        (major > 4).then_some(Absent::CannotBeHad(reason))
    })
}

/// podman on a machine.
pub(crate) struct Podman {
    host: Host,
}

impl Podman {
    /// Configures podman on a machine and loads the image; its containers have no network but the machine's, or none.
    pub(crate) fn set_up(host: &Host) -> Result<Self> {
        Self::configured(host, CONFIG.to_owned())
    }

    /// The same with CNI for its containers.
    pub(crate) fn with_cni(host: &Host) -> Result<Self> {
        if let Some(absent) = obstacle_of_cni() {
            return Err(absent.into());
        }
        Self::configured(host, format!("{CNI}{CONFIG}"))
    }

    fn configured(host: &Host, config: String) -> Result<Self> {
        host.write("/etc/containers/containers.conf", config)?;
        // A machine without plugins has the folder all the same.
        host.run(&["mkdir", "-p", "/opt/cni/bin"])?;
        image::build(host)?;
        let podman = Self { host: host.clone() };
        podman.run(&["load", "-q", "-i", image::ARCHIVE])?;
        Ok(podman)
    }

    fn command(&self, words: &[&str]) -> Command {
        self.host.command("podman").args(["--storage-driver=vfs"]).args(words).limit(LIMIT)
    }

    /// Runs podman to its end and gives what it printed.
    pub(crate) fn run(&self, words: &[&str]) -> Result<String> {
        Ok(self.command(words).run()?.stdout.trim().to_owned())
    }

    /// Starts a container of the image with its server.
    pub(crate) fn start(&self, name: &str, options: &[&str]) -> Result<Ipv4Addr> {
        let words = [&["run", "-d", "--name", name, "--hostname", name], options, &[image::NAME]];
        self.run(&words.concat())?;
        self.address(name)
    }

    /// The address that podman knows of a container.
    pub(crate) fn address(&self, name: &str) -> Result<Ipv4Addr> {
        let form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let printed = self.run(&["inspect", "-f", form, name])?;
        printed.parse().with_context(|| format!("address of container {name}: {printed:?}"))
    }

    /// Runs a program in a container.
    pub(crate) fn exec(&self, name: &str, words: &[&str]) -> Result<String> {
        self.run(&[&["exec", name], words].concat())
    }

    /// What the server at `url` answers to a container, as [`super::ask`].
    pub(crate) fn ask(&self, name: &str, url: &str) -> Result<String> {
        image::answer(&self.exec(name, &image::question(url))?)
    }

    /// Ends and removes a container.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        self.run(&["rm", "-f", "-t", "0", name]).map(drop)
    }
}
