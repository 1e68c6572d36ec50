//! A cluster from a drawing: machines with addresses on one underlay network.
//!
//! Invariant: the drawing is the only description of a cluster. A drawing that cannot be built (an address twice, outside the
//! network, a name too long for a switch port) is refused before anything is started.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};

/// The reference cluster of the design: one control plane, three etcd members, two nodes, one outside host.
const REFERENCE: &str = "
network 10.4.7.0/24
hdss7-11.host.com   10.4.7.11   control
hdss7-12.host.com   10.4.7.12   etcd
hdss7-21.host.com   10.4.7.21   etcd node
hdss7-22.host.com   10.4.7.22   etcd node
hdss7-200.host.com  10.4.7.200  outside
";

/// Longest interface name, without the closing NUL (linux/if.h, IFNAMSIZ).
const LONGEST_PORT: usize = 15;

/// What a cluster consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub(crate) network: Ipv4Addr,
    pub(crate) prefix_length: u8,
    pub(crate) machines: Vec<Machine>,
}

/// One line of a drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) roles: BTreeSet<String>,
}

impl Topology {
    /// The reference cluster: five machines on 10.4.7.0/24.
    ///
    /// # Errors
    /// Never for the drawing built in; the parser's type is kept.
    pub fn reference() -> Result<Self> {
        Self::parse(REFERENCE)
    }

    /// Reads a drawing: a line `network A.B.C.D/LENGTH`, then a line `name address [role ...]` for each machine. Empty lines
    /// and lines with `#` in front are skipped.
    ///
    /// # Errors
    /// Names the line and what was expected there.
    pub fn parse(drawing: &str) -> Result<Self> {
        let mut topology: Option<Self> = None;
        for (index, line) in drawing.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                ["network", network] => Self::on_network(network).map(|empty| topology = Some(empty)),
                [name, address, roles @ ..] => match topology.as_mut() {
                    Some(topology) => topology.add(name, address, roles),
                    None => Err(anyhow::anyhow!("the first line must be `network A.B.C.D/LENGTH`")),
                },
                [_] => Err(anyhow::anyhow!("expected `name address [role ...]`")),
            };
            parsed.with_context(|| format!("drawing, line {}: {line:?}", index + 1))?;
        }
        topology.context("an empty drawing: expected `network A.B.C.D/LENGTH` and a line per machine")
    }

    fn on_network(text: &str) -> Result<Self> {
        let (network, length) = text.split_once('/').context("expected A.B.C.D/LENGTH")?;
        let prefix_length: u8 = length.parse().context("prefix length")?;
        ensure!((1..=30).contains(&prefix_length), "prefix length {prefix_length} is not within 1..=30");
        Ok(Self { network: network.parse().context("network address")?, prefix_length, machines: Vec::new() })
    }

    fn add(&mut self, name: &str, address: &str, roles: &[&str]) -> Result<()> {
        let address: Ipv4Addr = address.parse().with_context(|| format!("address {address:?}"))?;
        let host_bits = 32 - u32::from(self.prefix_length);
        if u32::from(address) >> host_bits != u32::from(self.network) >> host_bits {
            bail!("{address} is outside the network {}/{}", self.network, self.prefix_length);
        }
        let machine =
            Machine { name: name.to_owned(), address, roles: roles.iter().map(|role| (*role).to_owned()).collect() };
        ensure!(
            machine.port().len() <= LONGEST_PORT,
            "{:?} is longer than {LONGEST_PORT} bytes before its first dot",
            machine.port()
        );
        if let Some(twin) =
            self.machines.iter().find(|other| other.address == address || other.port() == machine.port())
        {
            bail!("{} {} has that name or address already", twin.name, twin.address);
        }
        self.machines.push(machine);
        Ok(())
    }
}

impl Machine {
    /// Short name: what stands before the first dot. Also the name of the machine's port on the switch.
    pub(crate) fn port(&self) -> &str {
        self.name.split('.').next().unwrap_or(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_cluster_has_five_machines_and_three_etcd_members() {
        let topology = Topology::reference().unwrap();
        assert_eq!(topology.machines.len(), 5);
        assert_eq!(topology.machines.iter().filter(|machine| machine.roles.contains("etcd")).count(), 3);
        assert_eq!(topology.machines[2].port(), "hdss7-21");
    }

    #[test]
    fn drawing_that_cannot_be_built_is_refused_with_its_line() {
        for (drawing, complaint) in [
            ("", "empty drawing"),
            ("a 10.0.0.1", "first line must be"),
            ("network 10.0.0.0/24\na", "expected `name address"),
            ("network 10.0.0.0", "A.B.C.D/LENGTH"),
            ("network 10.0.0.0/33", "not within 1..=30"),
            ("network 10.0.0.0/24\na 10.0.1.1", "outside the network 10.0.0.0/24"),
            ("network 10.0.0.0/24\na 10.0.0.300", "address \"10.0.0.300\""),
            ("network 10.0.0.0/24\na 10.0.0.1\nb 10.0.0.1", "already"),
            ("network 10.0.0.0/24\na.x 10.0.0.1\na.y 10.0.0.2", "already"),
            ("network 10.0.0.0/24\nmuch-too-long-a-name 10.0.0.1", "longer than 15"),
        ] {
            let error = format!("{:#}", Topology::parse(drawing).unwrap_err());
            assert!(error.contains(complaint), "{drawing:?} gave {error:?}, not {complaint:?}");
        }
    }
}
