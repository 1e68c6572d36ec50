//! The working half of the daemon on tables in memory: [`rig`] is a proxy on such [`tables`], the other rooms say what becomes of them.

mod changes;
mod draining;
mod flows;
mod guarded;
mod killed;
mod local;
mod modes;
mod node;
mod order;
mod ownership;
mod repair;
mod report;
mod restart;
mod rig;
mod slow;
mod sources;
mod succession;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use cluster::Event;
use kernel::conntrack::Selection;
use kernel::fake::FakeTable;
use kernel::ipvs::{ServerStep, server_steps};
use kernel::{Cause, KernelError};
use netstate::family::PerFamily;
use netstate::ipvs::{RealServer, RealServerKey, Row, Server, ServerKey, VirtualServer, VirtualServerKey};
use netstate::{
    Address, AddressKey, IfName, IpFamily, Link, Prefix, Protocol, Route, RouteKey, SysctlKey, nft as nft_rows,
};
use proptest::prelude::*;
use reconcile::{Observed, Owner, PartsOf, Rows, Step, Target};
use serde_json::json;

use super::flows::sweep::sweep;
use super::flows::{Check, Checks, Locals, Tracked};
use super::proxy::Proxy;
use super::proxy::occasions::pause;
use super::status::ProxyStatus;
use super::tables::{Tables, Touched};
use super::targets::{Balance, Flows, Servers, Stale, Sweeper, Targets, VirtualAddresses};
use super::worker::audit_pause;
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Guards, Mode, NodeAddresses, Options, record, since, vip};
use crate::object::key::ObjectKey;
use crate::plan::FrontendKey;
use crate::plan::frontend::Kind;
use crate::plan::here::{Facts, Here};
use crate::plan::networks::Networks;
use crate::plan::pods::Pods;
use crate::source::update;
use rig::*;
use tables::*;
