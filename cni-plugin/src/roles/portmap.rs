//! The `portmap` name: chained behind the plugin that made the interface. Its result is the previous one, unchanged.
//!
//! Invariant: a record stands from before the first port is claimed until after the last is released, so that DEL,
//! which libcni calls for every Pod, examines nftables only for Pods that have ports.

use std::collections::BTreeMap;

use kernel::Rtnl;
use netstate::IfName;
use nix::libc::{EHOSTUNREACH, ENETUNREACH};
use serde_json::Value;

use super::Role;
use super::bridge::check::present_ports;
use crate::apply;
use crate::apply::executor::KernelExecutor;
use crate::plan::Cidr;
use crate::plan::check::missing_elements;
use crate::plan::hostports::HostPorts;
use crate::plan::tag::Tag;
use crate::protocol::args::Call;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::runtime::Honoured;
use crate::protocol::netconf::{NetConf, PortMapping, PortmapConf, RuntimeConfig};
use crate::protocol::result;
use crate::reclaim::release::{self, Part, close_ports};
use crate::state::ATTACHMENT_WAIT;
use crate::state::places::Places;
use crate::state::record::{self, Ports, Record};
use crate::state::records::{Class, Records};

/// The name `portmap`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portmap;

impl Role for Portmap {
    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError> {
        add(conf, call)
    }

    fn check(&self, conf: NetConf, call: &Call) -> Result<(), CniError> {
        check(conf, call)
    }

    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError> {
        release::chained(conf, call, Part::HostPorts)
    }
}

/// What a call of this name says.
struct Wanted {
    network: String,
    records: Records,
    conf: PortmapConf,
    mappings: Vec<PortMapping>,
    addresses: Vec<Cidr>,
    previous: Value,
    /// The previous plugin was ours: it says so by the name of the link.
    has_own_link: bool,
}

impl Wanted {
    fn parse(mut conf: NetConf, call: &Call) -> Result<Self, CniError> {
        let records = Places::of(&conf, None).records(Class::HostPorts);
        conf.fields.take("stateDir")?;
        let portmap = PortmapConf::take(&mut conf.fields)?;
        conf.fields.finish()?;
        let runtime = RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: true, attachment: false })?;
        let (previous, result) = result::chained(conf.prev_result, conf.version)?;
        let addresses = result.ips_of(&call.attachment.ifname).map(|ip| (ip.addr, ip.len)).collect();
        let link = call.attachment.host_link();
        let has_own_link = result.interfaces.iter().any(|i| i.sandbox.is_none() && i.name == link.as_str());
        let mappings = runtime.port_mappings;
        Ok(Self { network: conf.name, records, conf: portmap, mappings, addresses, previous, has_own_link })
    }

    fn ports<'a>(&'a self, call: &'a Call) -> HostPorts<'a> {
        let Self { network, mappings, addresses, conf, has_own_link, .. } = self;
        let (attachment, network) = (call.attachment.clone(), network.clone());
        HostPorts { tag: Tag { attachment, network, has_own_link: *has_own_link }, mappings, addresses, conf }
    }
}

/// ADD: opens the ports and answers the previous result as it came, with keys that nobody here knows.
///
/// # Errors
/// Code 7 without a previous result, 11 when another container holds a port; no port is open then.
fn add(conf: NetConf, call: &Call) -> Result<Value, CniError> {
    let wanted = Wanted::parse(conf, call)?;
    let ports = wanted.ports(call);
    if wanted.mappings.is_empty() {
        return Ok(wanted.previous);
    }
    let mut host = Rtnl::open()?;
    let steps = ports.plan(leads_to(&wanted, &mut host)?.as_ref())?;
    let mut held = wanted.records.hold(&call.attachment, ATTACHMENT_WAIT)?;
    let record = Record { boot: record::boot_id(), ports: Ports::Keys(ports.keys()), ..Record::default() };
    if held.existed {
        // Of an ADD that was killed, or whose DEL was lost. Others than this one's would be named by no record any more.
        let earlier = held.read().map_or(Ports::Unlisted, |earlier| earlier.ports);
        if earlier != record.ports {
            drop(close_ports(&wanted.network, &call.attachment, &earlier)?);
        }
    }
    let outcome = held.write(&record).and_then(|()| {
        let mut executor = KernelExecutor::new(host, None);
        executor.open_netfilter(!ports.stale_flows().is_empty())?;
        apply::apply(&steps, &mut executor)
    });
    match outcome {
        Ok(()) => Ok(wanted.previous),
        Err(error) => Err(held.remove_after(error)),
    }
}

/// The link of this host through which the Pod is reached; none where no route leads there, as to an internal network.
fn leads_to(wanted: &Wanted, host: &mut Rtnl) -> Result<Option<IfName>, CniError> {
    let unusable = |why: &str| {
        let msg = format!("prevResult.ips: {why}: host ports have nowhere to lead");
        CniError::new(Code::InvalidConfig, msg)
    };
    let (addr, _) = wanted.addresses.first().ok_or_else(|| unusable("no address of the container's interface"))?;
    match host.route_to(*addr) {
        Ok(route) => route.link.map(Some).ok_or_else(|| unusable(&format!("the route to {addr} names no link"))),
        Err(error) if matches!(error.errno(), Some(ENETUNREACH | EHOSTUNREACH)) => Ok(None),
        Err(error) => Err(unusable(&kernel::Chain(&error).to_string())),
    }
}

/// CHECK: every port is open and leads to the Pod.
///
/// # Errors
/// Code 102 with every port that is not.
fn check(conf: NetConf, call: &Call) -> Result<(), CniError> {
    let wanted = Wanted::parse(conf, call)?;
    let ports = wanted.ports(call);
    let elements = if ports.mappings.is_empty() { BTreeMap::new() } else { ports.ruleset().elements };
    let present = present_ports(&elements)?;
    let found = missing_elements(&elements, &present);
    if found.is_empty() {
        return Ok(());
    }
    let msg = format!("host ports of {} are not as ADD left them: {}", call.attachment, found.join("; "));
    Err(CniError::new(Code::Differs, msg).details("delete the Pod's sandbox to have it attached anew"))
}
