//! Whether this node's tunnels have a route to the other nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kernel::wireguard::Sessions;
use kernel::{KernelError, Rtnl};
use netstate::LinkKind;
use netstate::family::IpFamily;

use super::{Facts, Trouble};
use crate::plan::backend::Backend;
use crate::trace::astray::{self, Astray, End};

/// Other nodes whose route is looked up.
const NODES: usize = 512;

/// Looks up the route of each tunnel's packets to the nodes that it leads to.
///
/// # Errors
/// When the kernel cannot be read.
pub(super) fn astray(nodes: impl Iterator<Item = IpAddr>) -> Result<Vec<Astray>, KernelError> {
    let nodes: Vec<IpAddr> = nodes.take(NODES).collect();
    let mut rtnl = Rtnl::open()?;
    let (mut ends, mut own_ports) = (Vec::<End>::new(), BTreeMap::new());
    for link in rtnl.links()?.into_iter().filter(|link| Backend::owns_device(&link.name)) {
        let of_family = |family: IpFamily| nodes.iter().filter(move |node| IpFamily::of(**node) == family);
        let to: Vec<SocketAddr> = match &link.link.kind {
            LinkKind::Wireguard => {
                let Ok(sessions) = Sessions::of(&link.name) else { continue };
                own_ports.insert(link.name.clone(), sessions.port);
                sessions.peers.iter().filter_map(|peer| peer.endpoint).take(NODES).collect()
            }
            LinkKind::Vxlan(options) => {
                let family = options.local.map_or(IpFamily::V4, IpFamily::of);
                of_family(family).map(|node| SocketAddr::new(*node, options.port)).collect()
            }
            LinkKind::Ipip(_) => of_family(IpFamily::V4).map(|node| SocketAddr::new(*node, 0)).collect(),
            _ => Vec::new(),
        };
        ends.extend(to.into_iter().map(|to| (link.name.clone(), to)));
    }
    let ends = ends.into_iter().map(|end| ((), end));
    let found = astray::find(&mut rtnl, |device| own_ports.get(device).copied(), ends)?;
    Ok(found.into_iter().map(|((), astray)| astray).collect())
}

pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    astray::findings(&facts.astray).into_iter().map(|(text, fix)| Trouble::problem(text, fix)).collect()
}
