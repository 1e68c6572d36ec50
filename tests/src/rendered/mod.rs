//! A cluster as a person makes it: `netdadm render` of a file of `configs/clusters`, then `netdadm apply` on machines that boot.
//!
//! Invariant: what a machine has beside Debian, our programs and those of Kubernetes comes from the rendered folder alone.

mod workload;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::command::{Command, Output};
use crate::deadline::eventually;
use crate::host::Host;
use crate::kubernetes::{Release, tools};
use crate::programs::bin;
use crate::topology::Topology;

pub use workload::{NAME, Running, VIP};

/// Where the folder lies on a machine.
const OUT: &str = "/srv/out";
/// Where the whole folder and the file lie on the machine that asks.
const OPERATOR: &str = "/srv/operator";
/// Where the administrator's access lies on a machine.
const ADMIN: &str = "/run/admin.conf";
/// An apply waits for an API server at most as long.
const APPLY: Duration = Duration::from_secs(400);
/// Nodes that get ready on a busy machine.
const READY: Duration = Duration::from_secs(180);
/// The programs of Kubernetes that hosts run.
const KUBERNETES: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];

/// A rendered cluster and its machines, which have nothing of it before [`apply`](Self::apply).
#[derive(Debug)]
pub struct RenderedCluster {
    /// Its machines.
    pub machines: Cluster,
    folder: tempfile::TempDir,
    file: PathBuf,
    hosts: BTreeMap<String, Member>,
    order: Vec<String>,
}

/// The part of a topology that says which machines there are.
#[derive(Debug, Deserialize)]
struct File {
    domain: Option<String>,
    networks: Networks,
    hosts: BTreeMap<String, Member>,
}

#[derive(Debug, Deserialize)]
struct Networks {
    nodes: String,
}

#[derive(Debug, Deserialize)]
struct Member {
    address: String,
    roles: Roles,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Roles {
    One(String),
    Several(Vec<String>),
}

impl Member {
    fn has(&self, role: &str) -> bool {
        match &self.roles {
            Roles::One(one) => one == role,
            Roles::Several(all) => all.iter().any(|one| one == role),
        }
    }
}

/// What `netdadm render --json` says.
#[derive(Debug, Deserialize)]
struct Changes {
    hosts: Vec<Changed>,
}

#[derive(Debug, Deserialize)]
struct Changed {
    host: String,
}

impl RenderedCluster {
    /// Renders a file and boots its machines.
    ///
    /// # Errors
    /// When the file is refused, or a machine does not boot.
    pub fn boot(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let mut cluster = Self::unrendered(&text)?;
        cluster.order = cluster.render()?;
        Ok(cluster)
    }

    /// Boots the machines of a topology, and makes nothing else.
    ///
    /// # Errors
    /// When it cannot be read, or a machine does not boot.
    pub fn unrendered(text: &str) -> Result<Self> {
        let read: File = serde_saphyr::from_str(text).context("read the topology")?;
        let folder = tempfile::tempdir().context("a folder for what is rendered")?;
        let file = folder.path().join("cluster.yaml");
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        let kubernetes = Release::V1_20.programs()?;
        let mut programs: Vec<PathBuf> = KUBERNETES.iter().map(|name| kubernetes.join(name)).collect();
        programs.push(tools()?.join("kubectl"));
        let machines = Cluster::boot_with(&Topology::parse(&drawing(&read)?)?, &programs)?;
        Ok(Self { machines, folder, file, hosts: read.hosts, order: Vec::new() })
    }

    /// Takes what somebody rendered into a folder of the machine that asks, with the order of its hosts.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn take(&mut self, out: &str, order: Vec<String>) -> Result<()> {
        copy(&self.operator()?.path(out), &self.folder())?;
        self.order = order;
        Ok(())
    }

    /// Renders the file again; gives the hosts that differ, in the order in which they are to be taken.
    ///
    /// # Errors
    /// When it is refused.
    pub fn render(&self) -> Result<Vec<String>> {
        let mut netdadm = Program::new(bin("netdadm")?);
        let netdadm = netdadm.args(["render", "--json", "-f"]).arg(&self.file).arg("-o").arg(self.folder());
        let output = netdadm.output().context("netdadm render")?;
        ensure!(output.status.success(), "netdadm render: {}", String::from_utf8_lossy(&output.stderr));
        let changes: Changes = serde_json::from_slice(&output.stdout).context("what netdadm render prints")?;
        Ok(changes.hosts.into_iter().map(|changed| changed.host).collect())
    }

    /// Changes the one place of the cluster's own file that says `from`, and renders it again.
    ///
    /// # Errors
    /// When there is not one such place, or what comes of it is refused.
    pub fn change(&self, from: &str, to: &str) -> Result<()> {
        let text = std::fs::read_to_string(&self.file).context("read the topology")?;
        ensure!(text.matches(from).count() == 1, "{from:?} is not once in {text}");
        std::fs::write(&self.file, text.replace(from, to)).context("write the topology")?;
        self.render().map(drop)
    }

    /// `netdadm WORDS -f … -o …` on the machine that asks, with the file and the folder as they are now.
    ///
    /// # Errors
    /// When there is no such machine, or they cannot be copied.
    pub fn netdadm(&self, words: &[&str]) -> Result<Command> {
        let host = self.operator()?;
        let file = format!("{OPERATOR}/cluster.yaml");
        host.write(&file, std::fs::read(&self.file).context("read the topology")?)?;
        let out = format!("{OPERATOR}/out");
        host.run(&["rm", "-rf", &out])?;
        copy(&self.folder(), &host.path(&out))?;
        Ok(host.command("/usr/local/bin/netdadm").args(words).args(["-f", &file, "-o", &out]))
    }

    /// The host that is only a client where there is one, else one of the control plane.
    ///
    /// # Errors
    /// When there is neither.
    pub fn operator(&self) -> Result<&Host> {
        let name = self.with_role("none").chain(self.with_role("control-plane")).next().context("no host asks")?;
        self.host(name)
    }

    /// Has `netdadm certs renew` issue every certificate anew into the rendered folder.
    ///
    /// # Errors
    /// When it refuses.
    pub fn renew_certificates(&self) -> Result<()> {
        let mut netdadm = Program::new(bin("netdadm")?);
        let renew =
            netdadm.args(["certs", "renew", "--all", "--yes", "-f"]).arg(&self.file).arg("-o").arg(self.folder());
        let output = renew.output().context("netdadm certs renew")?;
        ensure!(output.status.success(), "netdadm certs renew: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The rendered folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Names of the hosts of the cluster in the order in which they are made.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(String::as_str)
    }

    /// Names of the hosts with a role.
    pub fn with_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a str> {
        self.hosts.iter().filter(move |(_, member)| member.has(role)).map(|(name, _)| name.as_str())
    }

    /// The machine of a host.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.machines.host(&machine(name))
    }

    /// Waits until the Node of every host with that role is ready.
    ///
    /// # Errors
    /// When one is not in time, with what the API server says.
    pub fn nodes_are_ready(&self) -> Result<()> {
        let count = self.with_role("node").count();
        eventually(READY, || {
            let nodes = self.kubectl(&["get", "nodes", "--no-headers"])?.run()?.stdout;
            let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count();
            ensure!(ready == count, "{nodes}");
            Ok(())
        })
    }

    /// Copies a host's part of the folder to `out` on its machine, and makes that ready to run Pods in the lab.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn copy(&self, name: &str, out: &str) -> Result<()> {
        let (host, from) = (self.host(name)?, self.folder());
        host.run(&["rm", "-rf", out])?;
        host.run(&["mkdir", "-p", &format!("{out}/hosts")])?;
        for part in [format!("hosts/{name}"), "netdadm.json".into()] {
            copy(&from.join(&part), &host.path(format!("{out}/{part}")))?;
        }
        if self.with_role("node").any(|node| node == name) {
            workload::allow_containers(host, &from.join(format!("hosts/{name}/root")))?;
        }
        Ok(())
    }

    /// The command that applies the folder that a machine has.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn apply_command(&self, name: &str) -> Result<Command> {
        let netdadm = self.host(name)?.command("/usr/local/bin/netdadm");
        Ok(netdadm.args(["apply", "--yes", "--host", name, OUT]).limit(APPLY))
    }

    /// Applies the folder on every host, one after the other in the order that `netdadm render` says.
    ///
    /// # Errors
    /// When it fails on one, with what `netdadm apply` says.
    pub fn apply_all(&self) -> Result<()> {
        self.order().try_for_each(|name| self.apply(name).map(drop))
    }

    /// `kubectl` as the administrator, on the machine that asks.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn kubectl(&self, words: &[&str]) -> Result<Command> {
        let host = self.operator()?;
        let access = std::fs::read(self.folder().join("pki/admin.conf")).context("read admin.conf")?;
        host.write(ADMIN, access)?;
        Ok(host.command("/usr/local/bin/kubectl").args(["--kubeconfig", ADMIN, "--request-timeout=20s"]).args(words))
    }

    /// Copies the folder to a machine and applies it there.
    ///
    /// # Errors
    /// When `netdadm apply` fails, with what it says.
    pub fn apply(&self, name: &str) -> Result<Output> {
        self.copy(name, OUT)?;
        self.apply_command(name)?.run().with_context(|| self.last_words(name))
    }

    /// What programs that ended by themselves have said last on a machine: klog's fatal lines, in front of pages of stacks.
    fn last_words(&self, name: &str) -> String {
        let script = "journalctl --boot --no-hostname --no-pager --grep '^F[0-9]{4} ' | tail -n 5";
        let found = self.host(name).and_then(|host| host.run(&["sh", "-c", script]));
        found.map_or_else(|error| format!("{error:#}"), |output| output.stdout)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Program::new("cp").arg("-a").args([from, to]).output().context("cp")?;
    ensure!(copied.status.success(), "copy {}: {}", from.display(), String::from_utf8_lossy(&copied.stderr));
    Ok(())
}

/// The machine of a host: where a host is named by its address, no port of a switch could be named after it.
fn machine(host: &str) -> String {
    if host.parse::<std::net::Ipv4Addr>().is_ok() {
        return format!("machine-{}", host.rsplit('.').next().unwrap_or_default());
    }
    host.split('.').next().unwrap_or(host).to_owned()
}

fn drawing(file: &File) -> Result<String> {
    let mut drawing = format!("network {}\n", file.networks.nodes);
    for (name, member) in &file.hosts {
        let domain = file.domain.as_ref().map_or_else(String::new, |domain| format!(".{domain}"));
        writeln!(drawing, "{}{domain} {}", machine(name), member.address)?;
    }
    Ok(drawing)
}
