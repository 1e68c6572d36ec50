//! The network a call is for: the configuration, completed from the subnet file; the `bridge` name's is complete itself.
//!
//! ADD, CHECK and STATUS need all of it and fail when something is wrong. DEL and GC need to know where state is kept
//! and nothing else: [`Places`] is found in whatever can be read, because a node must be able to clean up after a
//! configuration that was broken meanwhile.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kernel::Rtnl;
use kernel::link::LinkState;
use netstate::LinkKind;
use netstate::subnet_file::SubnetFile;
use serde_json::{Map, Value};

use super::Bridge;
use crate::protocol::args::CniArgs;
use crate::protocol::attachment::ContainerId;
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::Fields;
use crate::protocol::netconf::runtime::Honoured;
use crate::protocol::netconf::{
    BandwidthConf, BridgeConf, FlannelConf, NetConf, PortMapping, PortmapConf, RuntimeConfig, flannel,
};
use crate::protocol::range::{Range, RangeSet};
use crate::protocol::version::SpecVersion;
use crate::state::record;
use crate::state::reservations::store;
use crate::state::safe_file::{self, Links};

/// A network, ready to attach to.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Version of the result.
    pub version: SpecVersion,
    /// How Pods are wired.
    pub bridge: BridgeConf,
    /// Where records are.
    pub state_dir: PathBuf,
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
    pub fn load(conf: NetConf, role: Bridge, args: &CniArgs) -> Result<Self, CniError> {
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
        let bridge = BridgeConf::parse(conf.fields, "cni0", &[], args, &runtime)?;
        Ok(Self {
            name: conf.name,
            version: conf.version,
            bridge: BridgeConf { may_adopt: false, is_leased: false, ..bridge },
            state_dir: PathBuf::from(state_dir.as_deref().unwrap_or(record::DEFAULT_DIR)),
            ports: None,
            bandwidth: runtime.bandwidth.unwrap_or_default(),
            flannel_state: None,
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
        let version = conf.is_versioned.then_some(conf.version.as_str());
        let delegate = flannel.delegate(&conf.name, version, conf.runtime.as_ref(), &subnet);
        let runtime = RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: native, attachment: true })?;
        let content = Value::Object(delegate.clone()).to_string();
        let networks = [subnet.networks_v4.as_slice(), &subnet.networks_v6].concat();
        let bridge = BridgeConf::parse(
            bridge_fields(delegate, role)?,
            if native { "cbr0" } else { "cni0" },
            &networks,
            args,
            &runtime,
        )?;
        Ok(Self {
            name: conf.name,
            version: conf.version,
            bridge,
            state_dir: flannel.state_dir,
            ports: portmap.map(|portmap| (portmap, runtime.port_mappings)),
            bandwidth: bandwidth.or(runtime.bandwidth).unwrap_or_default(),
            flannel_state: (role == Bridge::Flannel).then_some((flannel.data_dir, content)),
        })
    }

    /// Looks for the network's bridge. Where nobody named it and the usual one is not there, another bridge that already
    /// has one of the gateways' addresses becomes the network's: the chain that ran here before us left it, with Pods on
    /// it.
    ///
    /// # Errors
    /// Code 100 when the kernel cannot be asked.
    pub fn find_bridge(&mut self, host: &mut Rtnl) -> Result<Option<LinkState>, CniError> {
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

/// What belongs to the bridge: the delegate without the keys that every configuration has.
fn bridge_fields(mut delegate: Map<String, Value>, role: Bridge) -> Result<Fields, CniError> {
    for key in ["name", "cniVersion", "type", "runtimeConfig"] {
        delegate.remove(key);
    }
    Fields::of(Value::Object(delegate), if role == Bridge::Native { "" } else { "delegate" })
}

/// The longest subnet file that is read, in bytes.
const SUBNET_FILE_MAX: u64 = 64 * 1024;

/// The most that is read of a state file of flannel's, in bytes.
pub(super) const STATE_FILE_MAX: u64 = 64 * 1024;

fn read_subnet_file(path: &Path) -> Result<SubnetFile, CniError> {
    let failed = |code, why: String| {
        CniError::new(code, format!("failed to load flannel 'subnet.env' file: {}", path.display())).details(why)
    };
    match safe_file::read(path, SUBNET_FILE_MAX, Links::Followed) {
        Ok(text) => SubnetFile::parse(&text).map_err(|e| failed(Code::InvalidConfig, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(failed(
            Code::TryAgainLater,
            "it is not there yet: netd writes it when this node has its lease; see netd's log".to_owned(),
        )),
        Err(e) => Err(failed(Code::Io, e.to_string())),
    }
}

/// Where the state of a network is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Directories with a directory of reservations for the network.
    pub reservations: Vec<PathBuf>,
    /// Where records are.
    pub records: PathBuf,
    /// Directory of flannel's state files, for the `flannel` name.
    pub flannel_dir: Option<PathBuf>,
    /// flannel's state file of the container.
    pub flannel_state: Option<PathBuf>,
    /// What that file is before it is whole: left by an ADD that was killed.
    pub flannel_draft: Option<PathBuf>,
}

impl Places {
    /// Finds them in `fields`, whatever else is wrong there, and in flannel's state file of `container`.
    #[must_use]
    pub fn of(fields: &Fields, role: Bridge, container: Option<&ContainerId>) -> Self {
        let mut fields = fields.clone();
        let text = |fields: &mut Fields, key: &str| fields.take_text(key).ok().flatten().filter(|t| !t.is_empty());
        let dir = |text: Option<String>, default: &str| PathBuf::from(text.as_deref().unwrap_or(default));
        let records = dir(text(&mut fields, "stateDir"), record::DEFAULT_DIR);
        let flannel = dir(text(&mut fields, "dataDir"), flannel::DEFAULT_DATA_DIR);
        let ipam = fields.take_object("ipam").ok().flatten().and_then(|mut ipam| text(&mut ipam, "dataDir"));
        let mut reservations = vec![dir(ipam, store::DEFAULT_DIR)];
        // Behind a symbolic link ADD keeps nothing, so there is nothing to remove.
        let flannel_dir = Some(flannel).filter(|dir| role == Bridge::Flannel && safe_file::refuse_link(dir).is_ok());
        let flannel_state = flannel_dir.as_ref().zip(container).map(|(dir, id)| dir.join(id.as_str()));
        let stored = flannel_state.as_deref().and_then(stored_data_dir).filter(|dir| !reservations.contains(dir));
        reservations.extend(stored);
        let flannel_draft = flannel_dir.as_ref().zip(container).map(|(dir, id)| draft_of(dir, id));
        Self { reservations, records, flannel_dir, flannel_state, flannel_draft }
    }
}

/// Where the state file of `container` is written before it gets its name.
#[must_use]
pub fn draft_of(dir: &Path, container: &ContainerId) -> PathBuf {
    dir.join(format!(".{container}"))
}

/// `ipam.dataDir` of a delegate that flannel's plugin stored: the configuration may have changed since.
fn stored_data_dir(path: &Path) -> Option<PathBuf> {
    let text = safe_file::read(path, STATE_FILE_MAX, Links::Refused).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    let mut ipam = Fields::of(value, "").ok()?.take_object("ipam").ok()??;
    ipam.take_text("dataDir").ok()?.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}
