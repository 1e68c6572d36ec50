//! A running cluster: the machines of a drawing, plugged into one switch.
//!
//! Invariant: the switch is a machine of its own, so two clusters with the same addresses can run side by side, and a
//! machine sees nothing of another but the packets the switch passes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Command;
use crate::deadline::eventually;
use crate::host::Host;
use crate::namespaces::Namespaces;
use crate::topology::{Machine, Topology};

/// Machines on an underlay; all of it ends when the value is dropped (and with it every handle of its machines).
#[derive(Debug)]
pub struct Cluster {
    hosts: Vec<(Machine, Host)>,
    switch: Host,
    wiring: Arc<Namespaces>,
}

impl Cluster {
    /// Starts the reference cluster.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn reference() -> Result<Self> {
        Self::start(&Topology::reference()?)
    }

    /// Starts every machine of the drawing with `eth0` on the underlay, and lists all of them in each `/etc/hosts`.
    ///
    /// # Errors
    /// When the kernel refuses a namespace or a link.
    pub fn start(topology: &Topology) -> Result<Self> {
        let switch = Host::start("switch")?;
        let wiring = Arc::new(switch.namespaces().network_only()?);
        let mut cluster = Self { hosts: Vec::new(), switch, wiring };
        for machine in &topology.machines {
            let host = Host::start_at(&machine.name, Some(machine.address))?;
            cluster.hosts.push((machine.clone(), host));
        }
        cluster.wire(topology.prefix_length).context("wire the cluster")?;
        cluster.list_names()?;
        Ok(cluster)
    }

    /// A machine by its full name or by what stands before the first dot.
    ///
    /// # Errors
    /// When there is none of that name; lists those there are.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|(machine, _)| machine.name == name || machine.port() == name);
        found.map(|(_, host)| host).with_context(|| {
            let names: Vec<&str> = self.hosts.iter().map(|(machine, _)| machine.port()).collect();
            format!("no machine {name:?} in this cluster; there are {}", names.join(", "))
        })
    }

    /// All machines in the order of the drawing.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().map(|(_, host)| host)
    }

    /// The machines with a role, in the order of the drawing.
    pub fn with_role<'a>(&'a self, role: &'a str) -> impl Iterator<Item = &'a Host> {
        self.hosts.iter().filter(move |(machine, _)| machine.roles.contains(role)).map(|(_, host)| host)
    }

    /// The machine that holds the underlay bridge, for captures and traffic control on its ports (named as the machines).
    #[must_use]
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// Pulls the machine's cable out of the switch: its carrier goes down, as with a real cable.
    ///
    /// # Errors
    /// When there is no machine of that name.
    pub fn unplug(&self, name: &str) -> Result<()> {
        self.set_port(name, "down", "0")
    }

    /// Puts the cable back and waits until packets can pass.
    ///
    /// # Errors
    /// When there is no machine of that name, or the link does not come up.
    pub fn plug(&self, name: &str) -> Result<()> {
        self.set_port(name, "up", "1")
    }

    /// Plugs another interface of a machine into the switch, down and without an address.
    ///
    /// # Errors
    /// When there is no machine of that name, or it has such an interface.
    pub fn attach(&self, name: &str, interface: &str) -> Result<()> {
        let host = self.host(name)?;
        let port = host.name().split('.').next().unwrap_or(name);
        let batch = format!(
            "link add name {port}-{interface} type veth peer name {interface} netns {}\n\
             link set dev {port}-{interface} master underlay up\n",
            host.pid()
        );
        Command::new("switch", Arc::clone(&self.wiring), "ip").args(["-batch", "-"]).input(batch).run()?;
        Ok(())
    }

    fn set_port(&self, name: &str, state: &str, carrier: &str) -> Result<()> {
        let host = self.host(name)?;
        let port = host.name().split('.').next().unwrap_or(name);
        self.switch.run(&["ip", "link", "set", "dev", port, state])?;
        eventually(Duration::from_secs(10), || {
            let seen = host.read("/sys/class/net/eth0/carrier")?;
            if seen.trim() == carrier { Ok(()) } else { Err(anyhow::anyhow!("carrier {}", seen.trim())) }
        })
        .with_context(|| format!("set the link of {name} {state}"))
    }

    fn wire(&self, prefix_length: u8) -> Result<()> {
        // No spanning tree and no snooping: a port passes packets as soon as it is up.
        let mut batch =
            "link add name underlay type bridge forward_delay 0 mcast_snooping 0\nlink set dev underlay up\n"
                .to_owned();
        for (machine, host) in &self.hosts {
            let port = machine.port();
            writeln!(batch, "link add name {port} type veth peer name eth0 netns {}", host.pid())?;
            writeln!(batch, "link set dev {port} master underlay up")?;
        }
        Command::new("switch", Arc::clone(&self.wiring), "ip").args(["-batch", "-"]).input(batch).run()?;
        for (machine, host) in &self.hosts {
            let batch =
                format!("address add {}/{prefix_length} brd + dev eth0\nlink set dev eth0 up\n", machine.address);
            host.command("ip").args(["-batch", "-"]).input(batch).run()?;
        }
        Ok(())
    }

    fn list_names(&self) -> Result<()> {
        let mut names = "127.0.0.1 localhost\n".to_owned();
        for (machine, _) in &self.hosts {
            writeln!(names, "{} {} {}", machine.address, machine.name, machine.port())?;
        }
        self.hosts().try_for_each(|host| host.write("/etc/hosts", &names))
    }
}
