//! Executes steps in the kernel.
//!
//! Invariant: everything on the host is done over one conversation that was opened in the host's namespace; the
//! process enters the Pod's namespace once, when the first step for it comes, and never returns. Host parameters
//! therefore come before Pod steps, which the plan's order guarantees.

mod bandwidth;
mod shared;

use std::collections::BTreeMap;
use std::net::IpAddr;

use kernel::conntrack::Conntrack;
use kernel::link::VethEnd;
use kernel::nft::Nft;
use kernel::{KernelError, Netns, Rtnl, sysctl};
use netstate::nft::Ruleset;
use netstate::{BridgeOptions, IfName, Link, LinkKind, MacAddr, Route, RouteKey};
use nix::libc;

use crate::apply::carrier;
use crate::apply::duplicates;
use crate::apply::hostports;
use crate::apply::needs;
use crate::apply::spoof;
use crate::apply::{Executor, Made};
use crate::plan::hostports::StaleFlows;
use crate::plan::{Cidr, End, Parameter, Step, Undo};
use crate::protocol::error::{CniError, Code};

/// The kernel of this host, and one Pod's namespace.
#[derive(Debug)]
pub(crate) struct KernelExecutor<'a> {
    host: Rtnl,
    netns: Option<&'a Netns>,
    inside: bool,
    indexes: BTreeMap<IfName, u32>,
    pod_index: Option<u32>,
    netfilter: Option<Netfilter>,
}

/// Conversations about nftables and tracked connections, opened in the host's namespace.
#[derive(Debug)]
struct Netfilter {
    nft: Nft,
    conntrack: Option<Conntrack>,
}

impl<'a> KernelExecutor<'a> {
    /// Works over `host`, a conversation in the host's namespace, and in `netns`.
    #[must_use]
    pub(crate) fn new(host: Rtnl, netns: Option<&'a Netns>) -> Self {
        Self { host, netns, inside: false, indexes: BTreeMap::new(), pod_index: None, netfilter: None }
    }

    /// Opens the conversations that host ports and masquerading need; the one about tracked connections only when
    /// `flows` have to be forgotten.
    ///
    /// # Errors
    /// Code 100 when the kernel refuses.
    pub(crate) fn open_netfilter(&mut self, flows: bool) -> Result<(), CniError> {
        let conntrack = flows.then(Conntrack::open).transpose()?;
        self.netfilter = Some(Netfilter { nft: Nft::open()?, conntrack });
        Ok(())
    }

    fn netfilter(&mut self) -> Result<(&mut Netfilter, &mut Rtnl), CniError> {
        let host = &mut self.host;
        let closed = || CniError::new(Code::Kernel, "no conversation with nftables was opened");
        self.netfilter.as_mut().map(|netfilter| (netfilter, host)).ok_or_else(closed)
    }

    fn write_table(&mut self, ruleset: &Ruleset) -> Result<(), CniError> {
        let nft = &mut self.netfilter()?.0.nft;
        nft.ensure(&ruleset.key, &ruleset.table).map(drop).map_err(CniError::from)
    }

    fn forget(&mut self, flows: &[StaleFlows]) -> Result<(), CniError> {
        let (executor, host) = self.netfilter()?;
        let local = host.addresses()?;
        let local: Vec<IpAddr> = local.into_iter().map(|(_, addr, _)| addr).collect();
        let closed = || CniError::new(Code::Kernel, "no conversation with connection tracking was opened");
        let conntrack = executor.conntrack.as_mut().ok_or_else(closed)?;
        hostports::forget_earlier(conntrack, flows, &local).map_err(CniError::from)
    }

    /// Takes over the index of a link of the host that the caller has just read.
    #[must_use]
    pub(crate) fn knowing(mut self, name: &IfName, index: Option<u32>) -> Self {
        self.indexes.extend(index.map(|index| (name.clone(), index)));
        self
    }

    fn netns(&self) -> Result<&'a Netns, CniError> {
        self.netns.ok_or_else(|| CniError::new(Code::InvalidNamespace, "no network namespace was opened"))
    }

    fn index(&mut self, name: &IfName) -> Result<u32, CniError> {
        if let Some(index) = self.indexes.get(name) {
            return Ok(*index);
        }
        let link = self.host.link(name)?;
        let index =
            link.ok_or_else(|| CniError::new(Code::Kernel, format!("link {name} was removed meanwhile")))?.index;
        self.indexes.insert(name.clone(), index);
        Ok(index)
    }

    fn create_veth(&mut self, host: &End, pod: &End, bridge: &IfName, mtu: u32) -> Result<(), CniError> {
        let master = self.index(bridge)?;
        let netns = self.netns()?;
        match self.host.create_veth(&veth_end(host), master, &veth_end(pod), netns, mtu) {
            Ok(pair) => {
                self.indexes.insert(host.name.clone(), pair.host);
                self.pod_index = Some(pair.peer);
                Ok(())
            }
            Err(e) if e.errno() == Some(libc::EEXIST) => Err(self.taken(host, pod, netns, &e)),
            Err(e) => Err(CniError::from(e)),
        }
    }

    fn taken(&mut self, host: &End, pod: &End, netns: &Netns, error: &KernelError) -> CniError {
        let msg = match self.host.link(&host.name) {
            Ok(Some(_)) => format!("host interface {} already exists", host.name),
            _ => format!("container veth name ({:?}) already exists in {}", pod.name.as_str(), netns.path().display()),
        };
        CniError::new(Code::AlreadyAttached, msg).details(kernel::Chain(error).to_string()).details("DEL it first")
    }

    fn enter(&mut self) -> Result<(), CniError> {
        if !self.inside {
            self.netns()?.enter()?;
            self.inside = true;
        }
        Ok(())
    }

    fn configure(
        &mut self,
        ifname: &IfName,
        addresses: &[Cidr],
        detect: bool,
        routes: &[(RouteKey, Route)],
    ) -> Result<(), CniError> {
        let netns = self.netns()?;
        self.enter()?;
        let index = self.pod_index;
        let inside = || -> Result<(), KernelError> {
            let missing =
                || KernelError::new("configure", ifname, kernel::Cause::Missing(format!("interface {ifname}")));
            Rtnl::open()?.configure_endpoint(ifname, index.ok_or_else(missing)?, addresses, detect, routes)
        };
        inside().map_err(|e| CniError::from(e).details(format!("in {}", netns.path().display())))
    }

    fn await_addresses(&mut self, ifname: &IfName, addresses: &[IpAddr]) -> Result<(), CniError> {
        self.enter()?;
        let Some(index) = self.pod_index else { return Ok(()) };
        duplicates::await_usable(&mut Rtnl::open()?, ifname, index, addresses)
    }
}

fn set(parameter: &Parameter) -> Result<(), CniError> {
    match sysctl::write(&parameter.key, parameter.value) {
        Err(e) if parameter.required => Err(CniError::from(e)),
        _ => Ok(()),
    }
}

/// The Pod's interface was just made.
fn set_new(parameter: &Parameter) -> Result<(), CniError> {
    match sysctl::set_new(&parameter.key, parameter.value) {
        Err(e) if parameter.required => Err(CniError::from(e)),
        _ => Ok(()),
    }
}

fn veth_end(end: &End) -> VethEnd {
    VethEnd { name: end.name.clone(), mac: end.mac }
}

fn bridge_link(mtu: Option<u32>, mac: Option<MacAddr>, vlan_filtering: bool) -> Link {
    Link { kind: LinkKind::Bridge(BridgeOptions { vlan_filtering }), mtu, mac, up: true, master: None }
}

fn up(mtu: Option<u32>) -> Link {
    Link { kind: LinkKind::Veth, mtu, mac: None, up: true, master: None }
}

/// What the kernel said about VLANs; most likely it does not know them.
fn vlans_refused(error: KernelError) -> CniError {
    let is_unknown = error.errno() == Some(libc::EOPNOTSUPP);
    let error = CniError::from(error);
    if !is_unknown {
        return error;
    }
    error.details("vlan and vlanTrunk need a kernel with CONFIG_BRIDGE_VLAN_FILTERING; or leave them out")
}

impl KernelExecutor<'_> {
    /// Executes a step on what belongs to one attachment.
    fn apply_own(&mut self, step: &Step) -> Result<(), CniError> {
        match step {
            Step::CreateBridge { .. }
            | Step::FilterVlans(_)
            | Step::CreateVlanLink { .. }
            | Step::SetUp { .. }
            | Step::SetBridge { .. }
            | Step::SetPromiscuous(_)
            | Step::RemoveBridgeAddress(..)
            | Step::AddGateway { .. }
            | Step::HostParameter(_) => Ok(()),
            Step::SetPortVlans { link, vlans, keeps_default } => {
                let index = self.index(link)?;
                self.host.set_port_vlans(index, vlans, *keeps_default).map_err(vlans_refused)
            }
            Step::CreateVeth { host, pod, bridge, mtu } => self.create_veth(host, pod, bridge, *mtu),
            Step::SetPort { link, options } => {
                let index = self.index(link)?;
                self.host.set_port(index, *options).map_err(CniError::from)
            }
            Step::PodParameter(parameter) => self.enter().and_then(|()| set_new(parameter)),
            Step::ConfigurePod { ifname, addresses, detect_duplicates, routes } => {
                self.configure(ifname, addresses, *detect_duplicates, routes)
            }
            Step::AwaitAddresses { ifname, addresses } => self.await_addresses(ifname, addresses),
            Step::AwaitCarrier(name) => {
                let index = self.index(name)?;
                carrier::await_operational(&mut self.host, name, index)
            }
            Step::WriteTable(ruleset) => self.write_table(ruleset),
            Step::OpenPorts { ruleset, tag } => {
                let (executor, host) = self.netfilter()?;
                hostports::claim(&mut executor.nft, host, ruleset, tag)
            }
            Step::GuardPort { ruleset, tag } => spoof::guard(&mut self.netfilter()?.0.nft, ruleset, tag),
            Step::ForgetFlows(flows) => self.forget(flows),
            Step::LimitLink { link, bucket } => self.limit(link, bucket),
            Step::CreateIfb { name, mac, mtu } => self.create_ifb(name, *mac, *mtu),
            Step::HookIngress(link) => self.hook_ingress(link),
            Step::Redirect { link, over } => self.redirect(link, over),
            Step::LearnNeighbour { bridge, addr, mac } => {
                let index = self.index(bridge)?;
                self.host.learn_neighbour(index, *addr, *mac).map_err(CniError::from)
            }
        }
    }
}

impl Executor for KernelExecutor<'_> {
    fn apply(&mut self, step: &Step) -> Result<Made, CniError> {
        match self.apply_shared(step)? {
            Some(made) => Ok(made),
            None => self.apply_own(step).map(|()| Made::Here).map_err(|error| needs::explained(error, step)),
        }
    }

    fn undo(&mut self, undo: &Undo) -> Result<(), CniError> {
        match undo {
            Undo::DeleteLink(name) => self.host.delete_link(name).map_err(CniError::from),
            Undo::RemoveShared { bridge, link } => self.remove_shared(bridge, link),
            Undo::RemoveGateway { bridge, link, gateway } => self.remove_gateway(bridge, link, *gateway),
            Undo::RestoreAddress(link, address) => self.restore_address(link, *address),
            Undo::Unlimit(link) => self.take_off(link, Rtnl::remove_bucket),
            Undo::UnhookIngress(link) => self.take_off(link, Rtnl::remove_ingress),
            Undo::ClosePorts(keys, tag) => hostports::close_known(&mut self.netfilter()?.0.nft, keys, tag),
            Undo::UnguardPort(table, tag) => spoof::release(&mut self.netfilter()?.0.nft, table, tag),
            Undo::ForgetNeighbour(bridge, addr) => {
                let index = self.index(bridge)?;
                self.host.forget_neighbours(index, &[*addr]).map_err(CniError::from)
            }
        }
    }
}
