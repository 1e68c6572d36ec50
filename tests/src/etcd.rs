//! A real etcd (Debian's etcd 3.4): one member, or a cluster of one member per machine.
//!
//! Invariant: data lies in the machines' own `/run` (memory), so a killed member comes back with its data and nothing stays
//! after the test. Members are named after their machines.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::command::Output;
use crate::deadline::eventually;
use crate::echo;
use crate::host::Host;
use crate::process::Process;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Time to elect a leader and serve, generous for the lab kernel on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(60);
const DATA: &str = "/run/etcd";

/// A running etcd cluster; ends when dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    host: Host,
    address: Ipv4Addr,
    process: Option<Process>,
    paused: bool,
}

impl Etcd {
    /// Starts one member on each machine and waits until every one of them serves.
    ///
    /// A machine without an underlay gets a member on its loopback.
    ///
    /// # Errors
    /// When etcd is not installed or does not come up; with the members' logs.
    pub fn start<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Result<Self> {
        let member = |host: &Host| {
            let address = host.address().unwrap_or(Ipv4Addr::LOCALHOST);
            Member { host: host.clone(), address, process: None, paused: false }
        };
        let mut etcd = Self { members: hosts.into_iter().map(member).collect() };
        ensure!(!etcd.members.is_empty(), "an etcd cluster needs a machine");
        let cluster: Vec<String> =
            etcd.members.iter().map(|member| format!("{}={}", member.host.name(), member.peer_url())).collect();
        for member in &mut etcd.members {
            member.launch(&cluster.join(","))?;
        }
        etcd.wait_ready()?;
        Ok(etcd)
    }

    /// Client URLs of all members, comma separated: the value of `--etcd-endpoints`.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.members.iter().map(Member::client_url).collect::<Vec<_>>().join(",")
    }

    /// Runs `etcdctl` with these arguments on the first machine whose member runs.
    ///
    /// # Errors
    /// When no member runs or etcdctl fails.
    pub fn etcdctl(&self, args: &[&str]) -> Result<Output> {
        let alive = self.members.iter().find(|member| member.serves()).context("no etcd member is running")?;
        let command =
            alive.host.command("etcdctl").env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", alive.client_url());
        // Its own five seconds are too few for the first programs of a guest that share its processor.
        command.arg("--command-timeout=20s").args(args).run()
    }

    /// Writes a key.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`].
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.etcdctl(&["put", "--", key, value]).map(drop)
    }

    /// Reads a key; `None` when it does not exist.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`].
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let printed = self.etcdctl(&["get", "--", key])?.stdout;
        let value = printed.split_once('\n').map(|(_, value)| value);
        Ok(value.map(|value| value.strip_suffix('\n').unwrap_or(value).to_owned()))
    }

    /// The keys below a prefix, in order.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`].
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let printed = self.etcdctl(&["get", "--prefix", "--keys-only", "--", prefix])?.stdout;
        Ok(printed.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`], and when the key did not exist.
    pub fn delete(&self, key: &str) -> Result<()> {
        let printed = self.etcdctl(&["del", "--", key])?.stdout;
        ensure!(printed.trim() == "1", "key {key} did not exist");
        Ok(())
    }

    /// Kills the member of a machine as a crash would.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let member = self.member(name)?;
        member.process.take().with_context(|| format!("the member of {name} is not running"))?.kill()
    }

    /// Whether the member of a machine runs: one that has no room for its data ends by itself.
    ///
    /// # Errors
    /// When the machine has none.
    pub fn is_running(&mut self, name: &str) -> Result<bool> {
        Ok(self.member(name)?.process.as_ref().is_some_and(Process::is_running))
    }

    /// Starts a killed member again, with the data it had, and waits until the cluster serves.
    ///
    /// # Errors
    /// When it is running, or does not come up.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let member = self.member(name)?;
        ensure!(member.process.is_none(), "the member of {name} is running");
        // A member that has data ignores the initial cluster and takes part in the one it knows.
        member.launch(&format!("{}={}", member.host.name(), member.peer_url()))?;
        self.wait_ready()
    }

    /// Starts killed members together: one alone has no quorum to serve with.
    ///
    /// # Errors
    /// As [`Etcd::restart`].
    pub fn restart_all(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            let member = self.member(name)?;
            ensure!(member.process.is_none(), "the member of {name} is running");
            member.launch(&format!("{}={}", member.host.name(), member.peer_url()))?;
        }
        self.wait_ready()
    }

    /// Starts a killed member as a cluster of its own, without the data it had.
    ///
    /// # Errors
    /// As [`Etcd::restart`].
    pub fn secede(&mut self, name: &str) -> Result<()> {
        self.member(name)?.host.run(&["rm", "-rf", DATA])?;
        self.restart_all(&[name])
    }

    /// Makes `host` a member of the running cluster.
    ///
    /// # Errors
    /// When the cluster refuses, or the member does not come up.
    pub fn add(&mut self, host: &Host) -> Result<()> {
        let address = host.address().unwrap_or(Ipv4Addr::LOCALHOST);
        let mut member = Member { host: host.clone(), address, process: None, paused: false };
        let printed =
            self.etcdctl(&["member", "add", host.name(), &format!("--peer-urls={}", member.peer_url())])?.stdout;
        let cluster = printed.lines().find_map(|line| line.strip_prefix("ETCD_INITIAL_CLUSTER="));
        let cluster = cluster.with_context(|| format!("no cluster in {printed}"))?.trim_matches('"');
        member.launch_in(cluster, "existing")?;
        self.members.push(member);
        self.wait_ready()
    }

    /// Takes the member of a machine out of the cluster for good.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let (full, listed) = (self.member(name)?.host.name().to_owned(), self.etcdctl(&["member", "list"])?.stdout);
        let line = listed.lines().find(|line| line.split(", ").nth(2) == Some(&full));
        // A member that took itself out may end before it says so; then an earlier call did it.
        if let Some(id) = line.and_then(|line| line.split(", ").next()) {
            self.etcdctl(&["member", "remove", id])?;
        }
        self.members.retain(|member| member.host.name() != full);
        self.wait_ready()
    }

    /// Stops the member (SIGSTOP): its connections stay open and nothing answers, as with a hanging disk.
    ///
    /// # Errors
    /// When it is not running.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        self.member(name)?.set_paused(true)
    }

    /// Lets a paused member go on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self, name: &str) -> Result<()> {
        self.member(name)?.set_paused(false)
    }

    /// Waits until every running member answers that the cluster is healthy.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn wait_ready(&self) -> Result<()> {
        for member in self.members.iter().filter(|member| member.serves()) {
            eventually(READY_LIMIT, || member.check_health())
                .with_context(|| format!("etcd on {} is not ready", member.host.name()))?;
        }
        Ok(())
    }

    fn member(&mut self, name: &str) -> Result<&mut Member> {
        let of_machine =
            |member: &&mut Member| member.host.name() == name || member.host.name().split('.').next() == Some(name);
        self.members.iter_mut().find(of_machine).with_context(|| format!("no etcd member on {name:?}"))
    }
}

impl Member {
    fn client_url(&self) -> String {
        format!("http://{}:{CLIENT_PORT}", self.address)
    }

    fn peer_url(&self) -> String {
        format!("http://{}:{PEER_PORT}", self.address)
    }

    fn serves(&self) -> bool {
        !self.paused && self.process.as_ref().is_some_and(Process::is_running)
    }

    fn launch(&mut self, cluster: &str) -> Result<()> {
        self.launch_in(cluster, "new")
    }

    fn launch_in(&mut self, cluster: &str, state: &str) -> Result<()> {
        let (client, peer) = (self.client_url(), self.peer_url());
        let flags = [
            ("--name", self.host.name()),
            ("--data-dir", DATA),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", cluster),
            ("--initial-cluster-state", state),
            ("--logger", "zap"),
            ("--log-level", "warn"),
        ];
        let command = self.host.command("etcd").args(flags.into_iter().flat_map(|(flag, value)| [flag, value]));
        self.process = Some(command.start("etcd")?);
        self.paused = false;
        Ok(())
    }

    fn set_paused(&mut self, paused: bool) -> Result<()> {
        let process =
            self.process.as_ref().with_context(|| format!("the member of {} is not running", self.host.name()))?;
        process.signal(if paused { Signal::SIGSTOP } else { Signal::SIGCONT })?;
        self.paused = paused;
        Ok(())
    }

    fn check_health(&self) -> Result<()> {
        if !self.serves() {
            bail!("etcd has ended");
        }
        let server = SocketAddr::from((self.address, CLIENT_PORT));
        let health = echo::fetch(&self.host, server, "/health", Duration::from_secs(2))?;
        ensure!(health.contains("\"true\""), "{health}");
        Ok(())
    }
}
