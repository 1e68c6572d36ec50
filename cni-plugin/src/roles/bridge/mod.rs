//! The names that make an interface: `netd-cni`, `flannel` and `bridge`.

pub(crate) mod add;
pub(crate) mod check;
pub(crate) mod mtu;
pub(crate) mod network;
pub(crate) mod status;
mod survey;

use serde_json::Value;

use crate::protocol::args::Call;
use crate::protocol::error::CniError;
use crate::protocol::netconf::NetConf;
use crate::reclaim::release;
use crate::roles::Role;

/// Where the network's configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bridge {
    /// `netd-cni`: bridge options at the top, the subnet from the node's lease; host ports and limits inside.
    Native,
    /// `flannel`: bridge options in `delegate`, the subnet from the node's lease.
    Flannel,
    /// `bridge`: the configuration says everything.
    Reference,
}

impl Role for Bridge {
    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError> {
        add::add(conf, *self, call)
    }

    fn check(&self, conf: NetConf, call: &Call) -> Result<(), CniError> {
        check::check(conf, *self, call)
    }

    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError> {
        release::attachment(conf, call)
    }

    fn status(&self, conf: NetConf) -> Result<(), CniError> {
        status::status(conf, *self)
    }
}
