//! The network a call is for: the configuration, completed from the subnet file; the `bridge` name's is complete itself.
//!
//! ADD, CHECK and STATUS need all of it and fail when something is wrong; DEL and GC need
//! [`crate::state::places::Places`] only.

use std::iter;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::Rtnl;
use kernel::link::LinkState;
use netstate::subnet_file::{self, SubnetFile};
use netstate::{IfName, LinkKind};
use serde_json::Value;

use super::Bridge;
use crate::protocol::args::CniArgs;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::bridge::Defaults;
use crate::protocol::netconf::runtime::Honoured;
use crate::protocol::netconf::{
    BandwidthConf, BridgeConf, DEFAULT_STATE_DIR, FlannelConf, IpamConf, NetConf, PortMapping, PortmapConf,
    RuntimeConfig,
};
use crate::protocol::range::{Range, RangeSet};
use crate::protocol::version::SpecVersion;
use crate::reclaim::leftovers::Leftovers;
use crate::state::records::{Class, Records};
use crate::state::reservations::{Locked, Pools, Sharing, Store};
use crate::state::safe_file::{self, Links};

/// The bridge of a configuration that names none.
const CBR0: IfName = IfName::literal("cbr0");
/// The same under the names of others.
const CNI0: IfName = IfName::literal("cni0");

/// A network, ready to attach to.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Its name.
    pub name: String,
    /// Version of the result.
    pub version: SpecVersion,
    /// How Pods are wired.
    pub bridge: BridgeConf,
    /// Its records.
    pub records: Records,
    /// Ports of the host that lead to the Pod; `None` for a name that leaves them to `portmap`.
    pub ports: Option<(PortmapConf, Vec<PortMapping>)>,
    /// How fast a Pod may receive and send.
    pub bandwidth: BandwidthConf,
    /// For the `flannel` name: directory and content of flannel's state file.
    pub flannel_state: Option<(PathBuf, String)>,
}

impl Network {
    /// Reads `conf` for a call of `role`.
    ///
    /// # Errors
    /// Code 11 when the subnet file is not there yet, 7 when it or the configuration is invalid, 2 for an option that
    /// is not honoured.
    pub(crate) fn load(conf: NetConf, role: Bridge, args: &CniArgs) -> Result<Self, CniError> {
        let network = match role {
            Bridge::Reference => Self::configured(conf, args)?,
            _ => Self::leased(conf, role, args)?,
        };
        network.check_version()?;
        if let Some((dir, _)) = &network.flannel_state {
            safe_file::refuse_link(dir).map_err(|e| CniError::io("use", dir, &e))?;
        }
        Ok(network)
    }

    /// A network whose configuration says everything.
    fn configured(mut conf: NetConf, args: &CniArgs) -> Result<Self, CniError> {
        let state_dir = conf.fields.take_text("stateDir")?.filter(|dir| !dir.is_empty());
        let runtime = RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: false, attachment: true })?;
        let bridge = BridgeConf::parse(conf.fields, Defaults { bridge: CNI0, lease: None }, args, &runtime)?;
        let name = conf.name;
        Ok(Self {
            version: conf.version,
            bridge,
            records: Records::new(
                Class::Attachment,
                Path::new(state_dir.as_deref().unwrap_or(DEFAULT_STATE_DIR)),
                &name,
            ),
            ports: None,
            bandwidth: runtime.bandwidth.unwrap_or_default(),
            flannel_state: None,
            name,
        })
    }

    /// A network whose subnet is this node's lease.
    fn leased(mut conf: NetConf, role: Bridge, args: &CniArgs) -> Result<Self, CniError> {
        let native = role == Bridge::Native;
        let portmap = if native { Some(PortmapConf::take(&mut conf.fields)?) } else { None };
        let bandwidth = if native { BandwidthConf::take(&mut conf.fields)? } else { None };
        let flannel = match role {
            Bridge::Native => FlannelConf::parse_native(conf.fields)?,
            _ => FlannelConf::parse(conf.fields)?,
        };
        let subnet = read_subnet_file(&flannel.subnet_file)?;
        let flannel_state = (role == Bridge::Flannel).then(|| {
            let version = conf.is_versioned.then_some(conf.version.as_str());
            let delegate = flannel.delegate(&conf.name, version, conf.runtime.as_ref(), &subnet);
            (flannel.data_dir.clone(), Value::Object(delegate).to_string())
        });
        let runtime = RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: native, attachment: true })?;
        let options = flannel.options(if native { "" } else { "delegate" });
        let defaults =
            Defaults { bridge: if native { CBR0 } else { CNI0 }, lease: Some((&subnet, flannel.ipam_section())) };
        let bridge = BridgeConf::parse(options, defaults, args, &runtime)?;
        Ok(Self {
            version: conf.version,
            bridge,
            records: Records::new(Class::Attachment, &flannel.state_dir, &conf.name),
            ports: portmap.map(|portmap| (portmap, runtime.port_mappings)),
            bandwidth: bandwidth.or(runtime.bandwidth).unwrap_or_default(),
            flannel_state,
            name: conf.name,
        })
    }

    /// What reservations of other networks mean. A gateway makes the host part of the subnet, and a host has one of each.
    #[must_use]
    pub(crate) fn sharing(&self) -> Sharing {
        if self.bridge.is_leased || self.bridge.gateway { Sharing::Exclusive } else { Sharing::Avoided }
    }

    /// Its reservations.
    pub(crate) fn store(&self, ipam: &IpamConf) -> Store {
        Store::new(&ipam.data_dir, &self.name).among(self.pools())
    }

    /// Where other networks' reservations are.
    pub(crate) fn pools(&self) -> Pools {
        Pools::of(self.records.top())
    }

    /// Directories of reservations that its addresses are drawn from, its own first.
    pub(crate) fn pool(&self, ipam: &IpamConf) -> impl Iterator<Item = PathBuf> {
        let own = ipam.data_dir.join(&self.name);
        let others = (self.sharing() == Sharing::Exclusive).then(|| self.pools().others(&own).collect::<Vec<_>>());
        let others = others.into_iter().flatten();
        iter::once(own).chain(others)
    }

    /// Releases what is left over in the whole pool and returns how many addresses that gave; `own` is held already. A
    /// network that another call is busy with is passed over.
    ///
    /// # Errors
    /// When reservations cannot be read or removed, or the kernel cannot be asked.
    pub(crate) fn reclaim(&self, ipam: &IpamConf, own: &Locked, host: &mut Rtnl) -> Result<usize, CniError> {
        let mut released = self.leftovers(ipam).release(own, host)?;
        for dir in self.pool(ipam).skip(1) {
            let Some((name, top)) = dir.file_name().zip(dir.parent()) else { continue };
            let (records, network) = (self.records.of_network(name), name.to_string_lossy());
            let leftovers = Leftovers::new(&network, &self.bridge.bridge, &records, top).recorded_only();
            if let Ok(Some(locked)) = Store::new(top, &network).lock_existing(Duration::ZERO) {
                released += leftovers.release(&locked, host)?;
            }
        }
        Ok(released)
    }

    /// True when [`Network::reclaim`] would find something, as far as can be seen without a lock.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(crate) fn can_reclaim(&self, ipam: &IpamConf, host: &mut Rtnl) -> Result<bool, CniError> {
        for (at, dir) in self.pool(ipam).enumerate() {
            let Some((name, top)) = dir.file_name().zip(dir.parent()) else { continue };
            let (records, network) = (self.records.of_network(name), name.to_string_lossy());
            let leftovers = Leftovers::new(&network, &self.bridge.bridge, &records, top);
            let leftovers = if at == 0 { leftovers } else { leftovers.recorded_only() };
            if leftovers.any(&dir, host)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How leftovers among its reservations are distinguished from what lives.
    #[must_use]
    fn leftovers(&self, ipam: &IpamConf) -> Leftovers<'_> {
        Leftovers::new(&self.name, &self.bridge.bridge, &self.records, &ipam.data_dir)
    }

    /// Searches for the network's bridge. Where nobody named it and the usual one is not there, another bridge that already
    /// has one of the gateways' addresses becomes the network's: the chain that ran here before us left it, with Pods on
    /// it.
    ///
    /// # Errors
    /// Code 100 when the kernel cannot be asked.
    pub(crate) fn find_bridge(&mut self, host: &mut Rtnl) -> Result<Option<LinkState>, CniError> {
        let found = host.link(&self.bridge.bridge)?;
        if !self.bridge.may_adopt || found.is_some() {
            return Ok(found);
        }
        let sets = self.bridge.ipam.iter().flat_map(|ipam| &ipam.sets);
        let gateways: Vec<IpAddr> = sets.flat_map(RangeSet::ranges).map(Range::gateway).collect();
        let (links, addresses) = (host.links()?, host.addresses()?);
        let holds = |index: u32| addresses.iter().any(|(of, addr, _)| *of == index && gateways.contains(addr));
        let is_bridge = |link: &LinkState| matches!(link.link.kind, LinkKind::Bridge(_));
        let found = links.into_iter().find(|link| is_bridge(link) && holds(link.index));
        if let Some(link) = &found {
            self.bridge.bridge = link.name.clone();
        }
        Ok(found)
    }

    /// 0.1.0 and 0.2.0 cannot say more than one address per family, nor none: better refused before anything is done.
    fn check_version(&self) -> Result<(), CniError> {
        match &self.bridge.ipam {
            Some(ipam) => ipam.check_version(self.version),
            None if self.version > SpecVersion::V0_2_0 => Ok(()),
            None => {
                let msg = format!("CNI version {} does not support a network without addresses", self.version);
                Err(CniError::new(Code::IncompatibleVersion, msg).details("set cniVersion to 0.3.1 or newer"))
            }
        }
    }
}

fn read_subnet_file(path: &Path) -> Result<SubnetFile, CniError> {
    let failed = |code, why: String| {
        CniError::new(code, format!("failed to load flannel 'subnet.env' file: {}", path.display())).details(why)
    };
    match safe_file::read(path, subnet_file::LONGEST, Links::Followed) {
        Ok(text) => SubnetFile::parse(&text).map_err(|e| failed(Code::InvalidConfig, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(failed(
            Code::TryAgainLater,
            "it is not there yet: netd writes it when this node has its lease; see netd's log".to_owned(),
        )),
        Err(e) => Err(failed(Code::Io, e.to_string())),
    }
}
