//! A running cluster: the machines of a drawing, plugged into one switch.
//!
//! Invariant: the switch is a machine of its own, so two clusters with the same addresses can run side by side, and a
//! machine sees nothing of another but the packets the switch passes.

use std::fmt::Write as _;
use std::path::PathBuf;
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
        let mut cluster = Self::with_switch()?;
        for machine in &topology.machines {
            let host = Host::start_at(&machine.name, Some(machine.address))?;
            cluster.hosts.push((machine.clone(), host));
        }
        cluster.wire(topology.prefix_length).context("wire the cluster")?;
        cluster.list_names()?;
        Ok(cluster)
    }

    /// Starts every machine of the drawing as one that boots Debian's systemd, with `eth0` on the underlay and our programs in
    /// `/usr/local/bin`, and waits until all are running. What such a machine writes outlives its [`reboot`](Self::reboot).
    ///
    /// # Errors
    /// When the kernel refuses a namespace or a link, or a unit of a boot fails; the journals stand below.
    pub fn boot(topology: &Topology) -> Result<Self> {
        Self::boot_with(topology, &[])
    }

    /// The same with these programs of others in `/usr/local/bin`.
    ///
    /// # Errors
    /// As [`Cluster::boot`].
    pub fn boot_with(topology: &Topology, programs: &[PathBuf]) -> Result<Self> {
        let mut cluster = Self::with_switch()?;
        for machine in &topology.machines {
            let host = Host::with_system(&machine.name, machine.address, topology.prefix_length, programs)?;
            cluster.hosts.push((machine.clone(), host));
        }
        let names: Vec<&str> = topology.machines.iter().map(Machine::port).collect();
        cluster.switch_on(&names)?;
        cluster.list_names()?;
        Ok(cluster)
    }

    /// Why machines cannot boot here, if they cannot: no systemd, or a place that allows it no cgroup of its own.
    #[must_use]
    pub fn boot_obstacle() -> Option<String> {
        let one = Topology::parse("network 10.0.0.0/24\nprobe 10.0.0.1");
        one.and_then(|drawing| Self::boot(&drawing)).err().map(|error| format!("{error:#}"))
    }

    /// Boots machines that are switched off, all at once, and waits until they are running.
    ///
    /// # Errors
    /// When one is not a machine that boots, or a unit of its boot fails.
    pub fn switch_on(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let (machine, host) = self.found(name)?;
            host.booted()?.switch_on()?;
            self.plug_in(&[(machine, host)]).with_context(|| format!("wire {name}"))?;
        }
        names.iter().try_for_each(|name| self.host(name)?.booted()?.wait_until_running())
    }

    /// Shuts machines down in order, as their power buttons do.
    ///
    /// # Errors
    /// When one is not a machine that boots, is switched off, or does not end.
    pub fn shut_down(&self, names: &[&str]) -> Result<()> {
        names.iter().try_for_each(|name| {
            self.host(name)?.booted()?.shut_down()?;
            self.pull_out(name)
        })
    }

    /// Shuts machines down in order and boots them again.
    ///
    /// # Errors
    /// As [`Cluster::shut_down`] and [`Cluster::switch_on`].
    pub fn reboot(&self, names: &[&str]) -> Result<()> {
        self.shut_down(names)?;
        self.switch_on(names)
    }

    /// Takes the power from a machine: all its processes end at once.
    ///
    /// # Errors
    /// When it is not a machine that boots, or is switched off.
    pub fn cut_power(&self, name: &str) -> Result<()> {
        self.host(name)?.booted()?.cut_power()?;
        self.pull_out(name)
    }

    fn with_switch() -> Result<Self> {
        let switch = Host::start("switch")?;
        let wiring = Arc::new(switch.namespaces()?.network_only()?);
        let cluster = Self { hosts: Vec::new(), switch, wiring };
        // No spanning tree and no snooping: a port passes packets as soon as it is up.
        cluster.batch(
            "link add name underlay type bridge forward_delay 0 mcast_snooping 0\nlink set dev underlay up\n"
                .to_owned(),
        )?;
        Ok(cluster)
    }

    /// A machine by its full name or by what stands before the first dot.
    ///
    /// # Errors
    /// When there is none of that name; lists those there are.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.found(name).map(|(_, host)| host)
    }

    fn found(&self, name: &str) -> Result<(&Machine, &Host)> {
        let found = self.hosts.iter().find(|(machine, _)| machine.name == name || machine.port() == name);
        found.map(|(machine, host)| (machine, host)).with_context(|| {
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
        self.batch(batch)
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
        self.plug_in(&self.hosts.iter().map(|(machine, host)| (machine, host)).collect::<Vec<_>>())?;
        for (machine, host) in &self.hosts {
            let batch =
                format!("address add {}/{prefix_length} brd + dev eth0\nlink set dev eth0 up\n", machine.address);
            host.command("ip").args(["-batch", "-"]).input(batch).run()?;
        }
        Ok(())
    }

    /// Takes the cable of a machine away that has ended: the kernel takes its network apart when it gets to it, and it answers until then.
    fn pull_out(&self, name: &str) -> Result<()> {
        let port = self.found(name)?.0.port();
        match self.switch.run(&["ip", "link", "delete", "dev", port]) {
            Err(error) if self.switch.path(format!("/sys/class/net/{port}")).exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Lays a cable from `eth0` of each machine to a port of its name.
    fn plug_in(&self, hosts: &[(&Machine, &Host)]) -> Result<()> {
        let mut batch = String::new();
        for (machine, host) in hosts {
            let port = machine.port();
            // A machine has the same card after a reboot: its neighbours know it by the hardware address.
            let [a, b, c, d] = machine.address.octets();
            let card = format!("eth0 address 02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
            writeln!(batch, "link add name {port} type veth peer name {card} netns {}", host.pid())?;
            writeln!(batch, "link set dev {port} master underlay up")?;
        }
        self.batch(batch)
    }

    /// Commands of ip(8) on the switch that may name processes of other machines.
    fn batch(&self, lines: String) -> Result<()> {
        let wiring = Some(Arc::clone(&self.wiring));
        Command::new("switch", wiring, "ip").args(["-batch", "-"]).input(lines).run().map(drop)
    }

    fn list_names(&self) -> Result<()> {
        let mut names = "127.0.0.1 localhost\n".to_owned();
        for (machine, _) in &self.hosts {
            writeln!(names, "{} {} {}", machine.address, machine.name, machine.port())?;
        }
        self.hosts().try_for_each(|host| host.write("/etc/hosts", &names))
    }
}
