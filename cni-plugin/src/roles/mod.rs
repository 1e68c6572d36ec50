//! One plugin name per module: its verbs gather facts, plan, apply, return a result.
//!
//! | verb | SPEC | changes |
//! |---|---|---|
//! | ADD | "ADD: Add container to network" | attaches, or leaves everything as it was |
//! | DEL | "DEL: Remove container from network" | removes what is there; nothing there is a success |
//! | CHECK | "CHECK: Check container's networking is as expected" | nothing |
//! | GC | "GC: Clean up any stale resources" | removes what is not listed as valid |
//! | STATUS | "STATUS: Check plugin status" | nothing |
//! | VERSION | "VERSION: probe plugin version support" | nothing |

pub(crate) mod bandwidth;
pub(crate) mod bridge;
pub(crate) mod cleanup;
pub(crate) mod host_local;
pub(crate) mod install;
pub(crate) mod loopback;
pub(crate) mod name;
pub(crate) mod portmap;
pub(crate) mod version;

use kernel::{Chain, Netns};
use serde_json::Value;

use crate::protocol::args::Call;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::protocol::version::SpecVersion;
use crate::reclaim::sweep;

pub(crate) use name::PluginName;

/// The verbs of one plugin name.
pub(crate) trait Role {
    /// The first version of the specification that the name speaks.
    fn since(&self) -> SpecVersion {
        SpecVersion::V0_1_0
    }

    /// ADD: attaches, or leaves everything as it was; returns the result object.
    ///
    /// # Errors
    /// The first cause; everything that was done is taken back then.
    fn add(&self, conf: NetConf, call: &Call) -> Result<Value, CniError>;

    /// CHECK: compares what is there with what ADD reported.
    ///
    /// # Errors
    /// Code 102 with every difference.
    fn check(&self, conf: NetConf, call: &Call) -> Result<(), CniError>;

    /// DEL: releases what is there, whichever name made it.
    ///
    /// # Errors
    /// When something that exists could not be removed.
    fn del(&self, conf: &NetConf, call: &Call) -> Result<(), CniError>;

    /// GC: removes what is not listed as valid, whichever name made it.
    ///
    /// # Errors
    /// The first failure, with the others in its details.
    fn gc(&self, conf: &NetConf) -> Result<(), CniError> {
        sweep::sweep(conf)
    }

    /// STATUS: whether ADD can be served. A chained plugin can when the one before it can.
    ///
    /// # Errors
    /// Code 50 or 51.
    fn status(&self, _conf: NetConf) -> Result<(), CniError> {
        Ok(())
    }
}

/// Opens the Pod's namespace and makes sure that it is not the host's.
///
/// # Errors
/// Code 8, and 4 when the call names none.
pub(crate) fn open_namespace(call: &Call) -> Result<Netns, CniError> {
    let path = call.netns()?;
    let bad = |msg: String| CniError::new(Code::InvalidNamespace, msg);
    let netns = Netns::open(path)
        .map_err(|e| bad(format!("failed to open netns {}", path.display())).details(Chain(&e).to_string()))?;
    match netns.is_current() {
        Ok(false) => Ok(netns),
        Ok(true) if call.own_netns => Ok(netns),
        Ok(true) => Err(bad("plugin's netns and netns from CNI_NETNS should not be the same".to_owned())),
        Err(e) => Err(bad(format!("cannot examine netns {}", path.display())).details(Chain(&e).to_string())),
    }
}
