//! ADD.
//!
//! Everything is checked before anything is touched. Then: hold the attachment's record, reserve addresses, look at
//! the host, plan, apply. From the reservation on a failure takes back all of it and reports the first cause.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use kernel::link::LinkState;
use kernel::{KernelError, Netns, Rtnl};
use netstate::IfName;
use serde_json::Value;

use super::Bridge;
use super::network::Network;
use super::survey::survey;
use crate::apply;
use crate::apply::executor::KernelExecutor;
use crate::apply::spoof;
use crate::plan::attach::{Attach, Facts};
use crate::plan::bandwidth::Bandwidth;
use crate::plan::hostports::HostPorts;
use crate::plan::tag::Tag;
use crate::plan::{Cidr, Step};
use crate::protocol::args::{Call, CniArgs};
use crate::protocol::attachment::Attachment;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::{IpamConf, NetConf};
use crate::protocol::range::Reservation;
use crate::protocol::resolver;
use crate::protocol::result::{self, Dns};
use crate::reclaim::ifb;
use crate::reclaim::release::close_ports;
use crate::roles::bridge::mtu;
use crate::roles::open_namespace;
use crate::state::places::flannel_draft;
use crate::state::record::{self, Ports, Record};
use crate::state::records::Held;
use crate::state::reservations::{Sharing, Store, StoreError};
use crate::state::safe_file::{self, Links};
use crate::state::{ATTACHMENT_WAIT, RESERVATION_WAIT};

/// Attaches the container and returns the result object: behind the previous one where others of the chain came before.
///
/// # Errors
/// The first cause; everything that was done is taken back then.
pub(crate) fn add(mut conf: NetConf, role: Bridge, call: &Call) -> Result<Value, CniError> {
    let previous = conf.prev_result.take();
    previous.clone().map(result::parse).transpose()?;
    let mut network = Network::load(conf, role, &CniArgs::parse(&call.args)?)?;
    let resolver = read_resolver(network.bridge.ipam.as_ref())?;
    let netns = open_namespace(call)?;
    let mut host = Rtnl::open()?;
    let bridge = network.find_bridge(&mut host)?;
    let mut held = network.records.hold(&call.attachment, ATTACHMENT_WAIT)?;
    let earlier = if held.existed { clear_away(&network, call, &netns, &mut held, &mut host)? } else { Vec::new() };
    let reservations = match reserve(&network, &call.attachment, &earlier, &mut host) {
        Ok(reservations) => reservations,
        Err(error) => {
            // Not written yet: the file that is there may be of another interface of the container.
            network.flannel_state = None;
            return Err(give_up(error, &network, call, &[], held));
        }
    };
    let addresses: Vec<Cidr> = reservations.iter().map(|r| (r.addr, r.len)).collect();
    let attach = Attach {
        attachment: &call.attachment,
        conf: &network.bridge,
        reservations: &reservations,
        resolver: &resolver,
        netns: &call.netns()?.to_string_lossy(),
        network: &network.name,
        ports: network.ports.as_ref().map(|(conf, mappings)| HostPorts {
            tag: Tag::own(&network.name, &call.attachment),
            mappings,
            addresses: &addresses,
            conf,
        }),
        bandwidth: Bandwidth::new(network.bandwidth, &network.name, &call.attachment),
    };
    match attach_now(&network, &attach, bridge.as_ref(), &mut held, (host, &netns)) {
        Ok(own) => Ok(result::behind(previous, own)),
        Err(error) => Err(give_up(error, &network, call, &reservations, held)),
    }
}

fn attach_now(
    network: &Network,
    attach: &Attach<'_>,
    bridge: Option<&LinkState>,
    held: &mut Held,
    (mut host, netns): (Rtnl, &Netns),
) -> Result<Value, CniError> {
    let addresses = attach.reservations.iter().map(|r| r.addr).collect();
    let open = attach.ports.as_ref().filter(|ports| !ports.mappings.is_empty());
    let ports = open.map_or(Ports::None, |ports| Ports::Keys(ports.keys()));
    let ifb = attach.bandwidth.as_ref().is_some_and(|bandwidth| bandwidth.conf.send.is_some());
    held.write(&Record {
        boot: record::boot_id(),
        addresses,
        ports,
        guarded: attach.guarded(),
        ifb,
        via: attach.gateway_vlan().map(|_| attach.gateway_link()),
    })?;
    if let Some((dir, content)) = &network.flannel_state {
        write_flannel_state(dir, attach.attachment, content)?;
    }
    let facts = survey(attach, bridge, &mut host)?;
    let steps = attach.plan(&facts)?;
    let result = attach.result(&facts)?.render(network.version)?;
    let notice = mtu_notice(attach, &facts, &steps, &mut host)?;
    let mut executor = KernelExecutor::new(host, Some(netns))
        .knowing(&attach.conf.bridge, facts.bridge.map(|bridge| bridge.index))
        .knowing(&attach.gateway_link(), facts.vlan_link.map(|link| link.index));
    if open.is_some() || network.bridge.masquerade.is_some() || network.bridge.spoof_guard {
        executor.open_netfilter(open.is_some_and(|ports| !ports.stale_flows().is_empty()))?;
    }
    apply::apply(&steps, &mut executor)?;
    if let Some(notice) = notice {
        // Runtimes put it into their log. Without one the Pod is attached all the same.
        let _ = writeln!(io::stderr(), "{notice}");
    }
    Ok(result)
}

/// What an operator must know when the bridge gets another MTU: which Pods keep theirs.
fn mtu_notice(attach: &Attach<'_>, facts: &Facts, steps: &[Step], host: &mut Rtnl) -> Result<Option<String>, CniError> {
    let changed = steps.iter().find_map(|step| match step {
        Step::SetBridge { mtu, .. } => *mtu,
        _ => None,
    });
    let Some((mtu, bridge)) = changed.zip(facts.bridge.as_ref()) else { return Ok(None) };
    let links = host.links()?;
    let own = attach.attachment.host_link();
    Ok(mtu::earlier(attach.network, (&attach.conf.bridge, bridge.index), mtu, &links, own))
}

/// Takes back what is not undone by the steps themselves: addresses, flannel's state file, the record.
fn give_up(mut error: CniError, network: &Network, call: &Call, reservations: &[Reservation], held: Held) -> CniError {
    let addresses: Vec<IpAddr> = reservations.iter().map(|r| r.addr).collect();
    let mut failures: Vec<String> = Vec::new();
    if let Some(ipam) = &network.bridge.ipam
        && !addresses.is_empty()
    {
        let store = Store::new(&ipam.data_dir, &network.name);
        let released = store.lock(RESERVATION_WAIT).and_then(|locked| locked.free(&call.attachment, &addresses));
        failures.extend(released.err().map(|e| e.to_string()));
    }
    if let Some((dir, _)) = &network.flannel_state {
        let path = dir.join(call.attachment.container.as_str());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => failures.push(format!("{}: {e}", path.display())),
            _ => {}
        }
    }
    failures.extend(held.remove().err().map(|e| e.to_string()));
    for failure in failures {
        error = error.details(format!("and could not undo: {failure}"));
    }
    error
}

fn reserve(
    network: &Network,
    owner: &Attachment,
    earlier: &[IpAddr],
    host: &mut Rtnl,
) -> Result<Vec<Reservation>, CniError> {
    let Some(ipam) = &network.bridge.ipam else { return Ok(Vec::new()) };
    if network.sharing() == Sharing::Exclusive {
        network.pools().make_known(&ipam.data_dir)?;
    }
    let locked = network.store(ipam).lock(RESERVATION_WAIT)?;
    // An ADD that was killed keeps its address for the ADD that follows it.
    locked.free(owner, earlier)?;
    let wanted = ipam.wanted(earlier);
    match locked.reserve(owner, &ipam.sets, &wanted, network.sharing()) {
        Err(StoreError::Exhausted { .. }) if network.reclaim(ipam, &locked, host)? > 0 => {
            Ok(locked.reserve(owner, &ipam.sets, &wanted, network.sharing())?)
        }
        outcome => Ok(outcome?),
    }
}

/// Removes what an earlier ADD of the same attachment left, but for its addresses, which it answers.
fn clear_away(
    network: &Network,
    call: &Call,
    netns: &Netns,
    held: &mut Held,
    host: &mut Rtnl,
) -> Result<Vec<IpAddr>, CniError> {
    let addresses = earlier(network, &call.attachment, netns, host)?;
    let record = held.read();
    let ports = match &record {
        Some(record) => record.ports.clone(),
        None if network.ports.is_some() => Ports::Unlisted,
        None => Ports::None,
    };
    // This call may ask for others, and then nothing would name these any more.
    drop(close_ports(&network.name, &call.attachment, &ports)?);
    ifb::remove(host, &network.records, &network.name, &call.attachment, record.as_ref())?;
    if record.is_none_or(|record| record.guarded.is_some()) {
        // For another hardware address, maybe, and the port has the same name again.
        drop(spoof::unguard(&Tag::own(&network.name, &call.attachment), None)?);
    }
    // From here on its addresses may change: a DEL after a crash must look for them.
    held.clear()?;
    Ok(addresses)
}

/// What an earlier ADD of the same attachment left: an error when it is complete, otherwise its addresses, with its
/// links removed.
fn earlier(
    network: &Network,
    attachment: &Attachment,
    netns: &Netns,
    host: &mut Rtnl,
) -> Result<Vec<IpAddr>, CniError> {
    let addresses = match &network.bridge.ipam {
        None => Vec::new(),
        Some(ipam) => match Store::new(&ipam.data_dir, &network.name).lock_existing(RESERVATION_WAIT) {
            Ok(None) => Vec::new(),
            Ok(Some(locked)) => locked.find(attachment)?,
            Err(e) => return Err(CniError::from(e)),
        },
    };
    let Some(link) = host.link(attachment.host_link())? else { return Ok(addresses) };
    if is_complete(&link, &attachment.ifname, &addresses, netns)? {
        let msg = format!("{attachment} is attached to network {} already", network.name);
        return Err(CniError::new(Code::AlreadyAttached, msg).details("DEL it first"));
    }
    host.delete_link(attachment.host_link())?;
    Ok(addresses)
}

/// True when the other end of `host_end` is in `netns`, up and with all of `addresses`.
fn is_complete(
    host_end: &LinkState,
    ifname: &IfName,
    addresses: &[IpAddr],
    netns: &Netns,
) -> Result<bool, KernelError> {
    let mut pod = Rtnl::open_in(netns)?;
    let Some(link) = pod.link(ifname)? else { return Ok(false) };
    let present: Vec<IpAddr> = pod.addresses_of(link.index)?.into_iter().map(|(addr, _)| addr).collect();
    let is_peer = link.lower_index == Some(host_end.index) && host_end.lower_index == Some(link.index);
    Ok(is_peer && link.link.up && addresses.iter().all(|addr| present.contains(addr)))
}

pub(crate) fn read_resolver(ipam: Option<&IpamConf>) -> Result<Dns, CniError> {
    let Some(path) = ipam.and_then(|ipam| ipam.resolv_conf.as_ref()) else { return Ok(Dns::default()) };
    let text = safe_file::read(path, 64 * 1024, Links::Followed);
    text.map(|text| resolver::parse(&text)).map_err(|e| CniError::io("read ipam.resolvConf", path, &e))
}

/// Writes what flannel's plugin would have written, so that it could take over this Pod.
fn write_flannel_state(dir: &Path, attachment: &Attachment, content: &str) -> Result<PathBuf, CniError> {
    let path = dir.join(attachment.container.as_str());
    let draft = flannel_draft(dir, &attachment.container);
    let write = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        std::io::Write::write_all(&mut options.open(&draft)?, content.as_bytes())?;
        fs::rename(&draft, &path)
    };
    write().map_err(|e| CniError::io("write", &path, &e))?;
    Ok(path)
}
