//! CHECK.

use kernel::link::LinkState;
use kernel::{KernelError, Rtnl};
use netstate::LinkKind;

use super::network::Network;
use super::{RESERVATION_WAIT, open_namespace, store_error};
use crate::args::{Call, CniArgs};
use crate::error::{CniError, Code};
use crate::hands::refused;
use crate::ipam::Store;
use crate::netconf::NetConf;
use crate::plan::check::{Expected, Facts, LinkFact, differences};
use crate::result;
use crate::role::Role;

/// Compares the attachment with the previous result.
///
/// # Errors
/// Code 102 with every difference; 7 without a previous result.
pub fn check(mut conf: NetConf, role: Role, call: &Call) -> Result<(), CniError> {
    let previous = conf.prev_result.take();
    let previous = previous.ok_or_else(|| CniError::new(Code::InvalidConfig, "Required prevResult missing"))?;
    let network = Network::load(conf, role, &CniArgs::parse(&call.args)?)?;
    let result = result::parse(previous)?;
    let netns_path = call.netns()?.to_string_lossy();
    let expected = Expected {
        attachment: &call.attachment,
        bridge: &network.bridge.bridge,
        netns: &netns_path,
        result: &result,
        has_ipam: network.bridge.ipam.is_some(),
        pod_up: !network.bridge.interface_disabled,
    };
    let facts = observe(&network, &expected, call)?;
    let found = differences(&expected, &facts);
    if found.is_empty() {
        return Ok(());
    }
    let msg = format!("{} is not as ADD left it: {}", call.attachment, found.join("; "));
    Err(CniError::new(Code::Differs, msg).details("delete the Pod's sandbox to have it attached anew"))
}

fn observe(network: &Network, expected: &Expected<'_>, call: &Call) -> Result<Facts, CniError> {
    let reserved = match &network.bridge.ipam {
        None => Vec::new(),
        Some(ipam) => match Store::new(&ipam.data_dir, &network.name).lock_existing(RESERVATION_WAIT) {
            Ok(None) => Vec::new(),
            Ok(Some(locked)) => {
                let reported = expected.result.ips.iter().map(|ip| ip.addr);
                reported.filter(|addr| locked.is_owned(&call.attachment, *addr)).collect()
            }
            Err(e) => return Err(store_error(&e)),
        },
    };
    let netns = open_namespace(call.netns()?)?;
    let look = || -> Result<Facts, KernelError> {
        let mut host = Rtnl::open()?;
        let mut pod = Rtnl::open_in(&netns)?;
        let inside = pod.link(&call.attachment.ifname)?;
        let addresses = match &inside {
            Some(link) => pod.addresses_of(link.index)?,
            None => Vec::new(),
        };
        Ok(Facts {
            bridge: host.link(expected.bridge)?.as_ref().map(fact),
            host: host.link(&expected.host_link())?.as_ref().map(fact),
            pod: inside.as_ref().map(fact),
            addresses,
            routes: pod.routes()?,
            reserved,
        })
    };
    look().map_err(|e| refused(&e))
}

fn fact(state: &LinkState) -> LinkFact {
    LinkFact {
        index: state.index,
        mac: state.link.mac,
        up: state.link.up,
        is_veth: state.link.kind == LinkKind::Veth,
        is_bridge: matches!(state.link.kind, LinkKind::Bridge(_)),
        master: state.master_index,
        peer: state.lower_index,
    }
}
