//! The `bandwidth` name: chained behind the plugin that made the interface. Its result is the previous one, with the
//! `ifb` device behind its interfaces where what the Pod sends is limited.
//!
//! Invariant: a record stands from before the device is made until after it is gone, so that GC knows the devices of
//! vanished Pods of this network from everybody else's. What is on the veth pair goes with it and needs no record.

use kernel::link::LinkState;
use kernel::{KernelError, Rtnl};
use netstate::LinkKind;
use serde_json::{Value, json};

use super::Role;
use super::bridge::status::not_available;
use super::open_namespace;
use crate::apply;
use crate::apply::executor::KernelExecutor;
use crate::apply::needs;
use crate::plan::Step;
use crate::plan::bandwidth;
use crate::protocol::args::Call;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{BandwidthConf, NetConf};
use crate::protocol::result::{self, AddResult};
use crate::protocol::version::SpecVersion;
use crate::reclaim::ifb;
use crate::reclaim::release::{self, Part};
use crate::state::ATTACHMENT_WAIT;
use crate::state::places::Places;
use crate::state::record::{self, Record};
use crate::state::records::{Class, Records};

/// The name `bandwidth`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bandwidth;

impl Role for Bandwidth {
    fn since(&self) -> SpecVersion {
        SINCE
    }

    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError> {
        add(conf, call)
    }

    fn check(&self, conf: NetConf, call: &Call) -> Result<(), CniError> {
        check(conf, call)
    }

    fn status(&self, mut conf: NetConf) -> Result<(), CniError> {
        let limits = BandwidthConf::take(&mut conf.fields).map_err(not_available)?;
        needs::check(&conf.name, &needs::of_limits(limits.unwrap_or_default()))
    }

    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError> {
        release::chained(conf, call, Part::Bandwidth)
    }
}

/// The first version that the reference speaks: results before it have no interfaces.
pub(crate) const SINCE: SpecVersion = SpecVersion::V0_3_0;

/// What a call of this name says.
struct Wanted {
    records: Records,
    bandwidth: Option<bandwidth::Bandwidth>,
    previous: Value,
    result: AddResult,
}

impl Wanted {
    fn parse(mut conf: NetConf, call: &Call) -> Result<Self, CniError> {
        let records = Places::of(&conf, None).records(Class::Bandwidth);
        conf.fields.take("stateDir")?;
        let configured = BandwidthConf::take(&mut conf.fields)?;
        conf.fields.finish()?;
        let mut asked = None;
        if let Some(mut runtime) = conf.runtime {
            asked = BandwidthConf::of_runtime(&mut runtime)?;
            runtime.finish()?;
        }
        let (previous, result) = result::chained(conf.prev_result, conf.version)?;
        let wanted = configured.or(asked).unwrap_or_default();
        let bandwidth = bandwidth::Bandwidth::new(wanted, &conf.name, &call.attachment);
        Ok(Self { records, bandwidth, previous, result })
    }
}

/// ADD: sets the limits and answers the previous result with what was made.
///
/// # Errors
/// Code 7 without a previous result that lists the host end of the Pod's veth pair, 101 when there is a limit already,
/// 100 when the kernel refuses; nothing is limited then that was not before.
fn add(conf: NetConf, call: &Call) -> Result<Value, CniError> {
    let wanted = Wanted::parse(conf, call)?;
    let Some(bandwidth) = &wanted.bandwidth else { return Ok(wanted.previous) };
    let mut host = Rtnl::open()?;
    let link = host_end(&wanted.result, call, &mut host)?;
    let steps = bandwidth.steps(&link.name, link.link.mtu.unwrap_or(1500));
    let executor = KernelExecutor::new(host, None).knowing(&link.name, Some(link.index));
    if bandwidth.conf.send.is_none() {
        return apply_all(&steps, executor).map(|()| wanted.previous);
    }
    let mut held = wanted.records.hold(&call.attachment, ATTACHMENT_WAIT)?;
    let existed = held.existed;
    let record = Record { boot: record::boot_id(), ifb: true, ..Record::default() };
    match held.write(&record).and_then(|()| apply_all(&steps, executor)) {
        Ok(()) => Ok(with_device(wanted.previous, bandwidth)),
        // An earlier ADD's record: its device may still be there.
        Err(error) if existed => Err(error),
        Err(error) => Err(held.remove_after(error)),
    }
}

fn apply_all(steps: &[Step], mut executor: KernelExecutor<'_>) -> Result<(), CniError> {
    apply::apply(steps, &mut executor)
}

fn with_device(mut result: Value, bandwidth: &bandwidth::Bandwidth) -> Value {
    if let Some(Value::Array(interfaces)) = result.get_mut("interfaces") {
        interfaces.push(json!({"name": bandwidth.ifb.as_str(), "mac": bandwidth.mac.to_string()}));
    }
    result
}

/// The host end of the veth pair that the Pod's interface is one end of. The previous result must list it: a link that
/// the chain did not make is not limited.
fn host_end(result: &AddResult, call: &Call, host: &mut Rtnl) -> Result<LinkState, CniError> {
    let ifname = &call.attachment.ifname;
    let unusable = |why: &str| {
        let msg = format!("container interface {ifname} {why}: there is nothing to limit");
        CniError::new(Code::InvalidConfig, msg).details("bandwidth works on veth pairs that its chain has made")
    };
    let netns = open_namespace(call)?;
    let look = |host: &mut Rtnl| -> Result<Option<(LinkState, LinkState)>, KernelError> {
        let Some(inside) = Rtnl::open_in(&netns)?.link(ifname)? else { return Ok(None) };
        let Some(peer) = inside.lower_index else { return Ok(None) };
        Ok(host.link_by_index(peer)?.map(|outside| (inside, outside)))
    };
    let (inside, outside) = look(host)?.ok_or_else(|| unusable("has no veth peer"))?;
    let is_pair = matches!((&inside.link.kind, &outside.link.kind), (LinkKind::Veth, LinkKind::Veth))
        && outside.lower_index == Some(inside.index);
    if !is_pair {
        return Err(unusable("has no veth peer in this namespace"));
    }
    let is_listed = |i: &result::Interface| i.sandbox.is_none() && i.name == outside.name.as_str();
    match result.interfaces.iter().any(is_listed) {
        true => Ok(outside),
        false => Err(unusable(&format!("has the veth peer {}, which prevResult does not list", outside.name))),
    }
}

/// CHECK: the limits are as ADD set them.
///
/// # Errors
/// Code 102 with every difference.
fn check(conf: NetConf, call: &Call) -> Result<(), CniError> {
    let wanted = Wanted::parse(conf, call)?;
    let Some(bandwidth) = &wanted.bandwidth else { return Ok(()) };
    let mut host = Rtnl::open()?;
    let link = host_end(&wanted.result, call, &mut host)?;
    let facts = ifb::observe(&mut host, bandwidth, link.index)?;
    let found = bandwidth.differences(&link.name, &facts);
    if found.is_empty() {
        return Ok(());
    }
    let msg = format!("limits of {} are not as ADD left them: {}", call.attachment, found.join("; "));
    Err(CniError::new(Code::Differs, msg).details("delete the Pod's sandbox to have it attached anew"))
}
