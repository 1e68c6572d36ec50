//! A Pod sandbox: the network namespace of a Pod, attached to the machine's network, until it is stopped.
//!
//! Invariant: the order is a runtime's (containerd `RunPodSandbox`, `StopPodSandbox`; CRI-O `networkStart`, `networkStop`):
//! namespace, loopback, ADD; on a failed ADD a DEL; when stopped DEL while the namespace still exists, then the namespace.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::attachment::Attachment;
use super::cache;
use super::client::Client;
use super::network::Network;
use super::runtime::Runtime;
use crate::pod::Pod;

/// go-cni's own network, beside every other one, on the interface `lo`.
const LOOPBACK: &str = r#"{"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}"#;

/// A running Pod sandbox. Dropping it without [`Sandbox::stop`] removes the namespace and asks no plugin, as a crash would.
#[derive(Debug)]
pub struct Sandbox {
    runtime: Runtime,
    network: Network,
    attachment: Attachment,
    result: Value,
    address: Ipv4Addr,
    pod: Pod,
}

impl Sandbox {
    pub(crate) fn run(runtime: &Runtime, name: &str) -> Result<Self> {
        let pod = runtime.host().pod(name)?;
        let attachment = Attachment::of(&pod);
        Self::attach(runtime, pod, attachment)
    }

    /// Attaches a Pod as the client would, with these arguments; the client's own form of them is applied.
    ///
    /// # Errors
    /// As [`Runtime::add`], after the DEL that follows a failed ADD.
    pub fn attach(runtime: &Runtime, pod: Pod, attachment: Attachment) -> Result<Self> {
        let network = runtime.network()?;
        let attachment = attachment.given_by(runtime.client());
        let added = set_up(runtime, &network, &pod, &attachment);
        match added {
            Ok((result, address)) => Ok(Self { runtime: runtime.clone(), network, attachment, result, address, pod }),
            Err(error) => match tear_down(runtime, &network, &attachment) {
                Ok(()) => Err(error),
                Err(undo) => Err(error.context(format!("and the DEL after it failed: {undo:#}"))),
            },
        }
    }

    /// The Pod: place for commands, servers and clients.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The Pod's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The result of ADD.
    #[must_use]
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// The attachment, for further verbs.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// CHECK.
    ///
    /// # Errors
    /// As [`Runtime::check`].
    pub fn check(&self) -> Result<()> {
        self.runtime.check(&self.network, &self.attachment)
    }

    /// DEL, then the end of the namespace. containerd deletes with the network it has loaded now, CRI-O with that of the ADD.
    ///
    /// # Errors
    /// As [`Runtime::del`].
    pub fn stop(self) -> Result<()> {
        let network = match self.runtime.client() {
            Client::Cnitool | Client::Podman4 => self.network,
            Client::Containerd1 | Client::Containerd2 => self.runtime.network()?,
            Client::CriO => match cache::configuration(self.runtime.host(), &self.network, &self.attachment) {
                Some(list) => self.runtime.parse(&list)?,
                None => self.network,
            },
        };
        tear_down(&self.runtime, &network, &self.attachment)
    }
}

fn set_up(runtime: &Runtime, network: &Network, pod: &Pod, attachment: &Attachment) -> Result<(Value, Ipv4Addr)> {
    match runtime.client() {
        // In parallel with the other networks there; the plugin tests cover that.
        client if client.is_containerd() => {
            runtime.add(&runtime.parse(LOOPBACK)?, &attachment.clone().ifname("lo"))?;
        }
        _ => {
            pod.run(&["ip", "link", "set", "lo", "up"])?;
        }
    }
    let result = runtime.add(network, attachment)?;
    let address =
        first_address(&result).with_context(|| format!("failed to find network info for sandbox in {result}"))?;
    if runtime.client() == Client::CriO && network.speaks("0.4.0") {
        runtime.check(network, attachment)?;
    }
    Ok((result, address))
}

fn tear_down(runtime: &Runtime, network: &Network, attachment: &Attachment) -> Result<()> {
    if runtime.client().is_containerd() {
        runtime.del(&runtime.parse(LOOPBACK)?, &attachment.clone().ifname("lo"))?;
    }
    runtime.del(network, attachment)
}

/// First IPv4 address of a result.
fn first_address(result: &Value) -> Option<Ipv4Addr> {
    let flat = result.pointer("/ip4/ip").and_then(Value::as_str);
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let listed = listed.filter_map(|ip| ip.get("address")?.as_str());
    let addresses = flat.into_iter().chain(listed).filter_map(|text| text.split('/').next()?.parse().ok());
    addresses.filter_map(|address| if let IpAddr::V4(address) = address { Some(address) } else { None }).next()
}
