//! The `loopback` name: sets `lo` of a container up and down (plugins/main/loopback). containerd calls it for every Pod.

use std::net::IpAddr;

use kernel::{KernelError, Netns, Rtnl};
use netstate::{IfName, Link};
use serde_json::Value;

use super::{Role, open_namespace};
use crate::protocol::args::Call;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::runtime::Honoured;
use crate::protocol::netconf::{NetConf, RuntimeConfig};
use crate::protocol::result::{self, AddResult, Interface, IpConfig};

/// The name `loopback`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loopback;

impl Role for Loopback {
    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError> {
        add(conf, call)
    }

    fn check(&self, _conf: NetConf, call: &Call) -> Result<(), CniError> {
        check(call)
    }

    fn del(&self, _conf: &NetConf, call: &Call) -> Result<(), CniError> {
        del(call)
    }
}

const LO: IfName = IfName::literal("lo");

fn missing(netns: &Netns) -> CniError {
    CniError::new(Code::Kernel, format!("interface lo is missing in {}", netns.path().display()))
}

/// ADD: sets `lo` up. Answers the previous result when there is one.
///
/// # Errors
/// Code 7 when `lo` has an address that is none of the loopback's, 100 when the kernel refuses.
fn add(conf: NetConf, call: &Call) -> Result<Value, CniError> {
    RuntimeConfig::parse(conf.runtime, Honoured { port_mappings: false, attachment: false })?;
    conf.fields.finish()?;
    let netns = open_namespace(call)?;
    let set_up = |pod: &mut Rtnl| -> Result<Option<Vec<(IpAddr, u8)>>, KernelError> {
        let Some(found) = pod.link(&LO)? else { return Ok(None) };
        pod.set_link(&LO, &Link { mtu: None, mac: None, up: true, ..found.link })?;
        pod.addresses_of(found.index).map(Some)
    };
    let addresses = Rtnl::open_in(&netns).and_then(|mut pod| set_up(&mut pod))?;
    let addresses = addresses.ok_or_else(|| missing(&netns))?;
    if let Some((addr, len)) = addresses.iter().find(|(addr, _)| !addr.is_loopback()) {
        let msg = format!("loopback interface of {} has the address {addr}/{len}", netns.path().display());
        return Err(CniError::new(Code::InvalidConfig, msg).details("take it off: lo is for 127.0.0.0/8 and ::1"));
    }
    if conf.prev_result.is_some() {
        return result::chained(conf.prev_result, conf.version).map(|(previous, _)| previous);
    }
    let sandbox = Some(call.netns()?.to_string_lossy().into_owned());
    let mac = Some(netstate::MacAddr([0; 6]));
    let ip = |(addr, len)| IpConfig { interface: Some(0), addr, len, gateway: None };
    let result = AddResult {
        interfaces: vec![Interface { name: LO.to_string(), mac, mtu: None, sandbox }],
        ips: addresses.into_iter().map(ip).collect(),
        ..AddResult::default()
    };
    result.render(conf.version)
}

/// CHECK: `lo` is up.
///
/// # Errors
/// Code 102 when it is not.
fn check(call: &Call) -> Result<(), CniError> {
    let netns = open_namespace(call)?;
    let found = Rtnl::open_in(&netns).and_then(|mut pod| pod.link(&LO))?;
    if found.ok_or_else(|| missing(&netns))?.link.up {
        return Ok(());
    }
    Err(CniError::new(Code::Differs, format!("interface lo of {} is down", netns.path().display())))
}

/// DEL: sets `lo` down. A namespace that is gone is fine.
///
/// # Errors
/// Code 100 when the kernel refuses.
fn del(call: &Call) -> Result<(), CniError> {
    let Ok(netns) = open_namespace(call) else { return Ok(()) };
    let set_down = |pod: &mut Rtnl| match pod.link(&LO)? {
        Some(found) => pod.set_link(&LO, &Link { mtu: None, mac: None, up: false, ..found.link }),
        None => Ok(()),
    };
    Rtnl::open_in(&netns).and_then(|mut pod| set_down(&mut pod)).map_err(CniError::from)
}
