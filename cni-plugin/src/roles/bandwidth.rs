//! The `bandwidth` name: chained behind the plugin that made the interface. Its result is the previous one, with the
//! `ifb` device behind its interfaces where what the Pod sends is limited.
//!
//! Invariant: a record stands from before the device is made until after it is gone, so that GC knows the devices of
//! vanished Pods of this network from everybody else's. What is on the veth pair goes with it and needs no record.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kernel::link::LinkState;
use kernel::{KernelError, Rtnl};
use netstate::LinkKind;
use serde_json::{Value, json};

use super::Role;
use super::bridge::Bridge;
use super::bridge::network::Places;
use super::{ATTACHMENT_WAIT, open_namespace};
use crate::apply;
use crate::apply::executor::KernelExecutor;
use crate::plan::Step;
use crate::plan::bandwidth;
use crate::plan::gc::{Subject, stale};
use crate::protocol::args::Call;
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{BandwidthConf, NetConf};
use crate::protocol::result::{self, AddResult};
use crate::protocol::version::SpecVersion;
use crate::reclaim::ifb;
use crate::state::record::{self, Record};

/// The name `bandwidth`.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth;

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

    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError> {
        del(conf, call)
    }

    fn gc(&self, conf: &NetConf) -> Result<(), CniError> {
        gc(conf)
    }
}

/// The first version that the reference speaks: results before it have no interfaces.
pub const SINCE: SpecVersion = SpecVersion::V0_3_0;

/// What a call of this name says.
struct Wanted {
    network: String,
    records: PathBuf,
    bandwidth: Option<bandwidth::Bandwidth>,
    previous: Value,
    result: AddResult,
}

impl Wanted {
    fn parse(mut conf: NetConf, call: &Call) -> Result<Self, CniError> {
        let records = records(&conf);
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
        Ok(Self { network: conf.name, records, bandwidth, previous, result })
    }
}

fn records(conf: &NetConf) -> PathBuf {
    Places::of(&conf.fields, Bridge::Reference, None).records.join(record::BANDWIDTH_DIR)
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
    let mut held = record::hold(&wanted.records, &wanted.network, &call.attachment, ATTACHMENT_WAIT)?;
    let existed = held.existed;
    let record = Record { boot: record::boot_id(), ifb: true, ..Record::default() };
    match held.write(&record).and_then(|()| apply_all(&steps, executor)) {
        Ok(()) => Ok(with_device(wanted.previous, bandwidth)),
        // An earlier ADD's record: its device may still be there.
        Err(error) if existed => Err(error),
        Err(error) => {
            Err(held.remove().err().map_or(error.clone(), |e| error.details(format!("and could not undo: {e}"))))
        }
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

/// DEL: removes the `ifb` device, whoever made it. Limits on the veth pair go with it.
///
/// # Errors
/// Code 100 when the kernel refuses.
fn del(conf: &NetConf, call: &Call) -> Result<(), CniError> {
    remove(&records(conf), &conf.name, &call.attachment, ATTACHMENT_WAIT)
}

fn remove(records: &Path, network: &str, owner: &Attachment, wait: Duration) -> Result<(), CniError> {
    let mut held = record::hold_existing(records, network, owner, wait)?;
    let record = held.as_mut().and_then(record::Held::read);
    let mut host = Rtnl::open()?;
    ifb::remove(&mut host, records, network, owner, record.as_ref())?;
    held.map_or(Ok(()), record::Held::remove)
}

/// How long GC waits for a record: a DEL that was killed leaves a process that holds it until the device is gone, some
/// 20 ms.
const OUTLIVED_WAIT: Duration = Duration::from_secs(1);

/// GC: removes the devices of everybody who is not listed as valid. What another call works on is left to that call.
///
/// # Errors
/// The first failure, with the others in its details.
fn gc(conf: &NetConf) -> Result<(), CniError> {
    let records = records(conf);
    let valid = conf.valid_attachments.clone().unwrap_or_default();
    let mut failures: Vec<CniError> = Vec::new();
    for owner in stale(record::owners(&records, &conf.name), &valid) {
        if let Subject::Attachment(owner) = owner
            && let Err(error) = remove(&records, &conf.name, &owner, OUTLIVED_WAIT)
            && error.code != Code::TryAgainLater
        {
            failures.push(error);
        }
    }
    let mut failures = failures.into_iter();
    match failures.next() {
        None => Ok(()),
        Some(first) => Err(failures.fold(first, |error, other| error.details(format!("and: {other}")))),
    }
}
