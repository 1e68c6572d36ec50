//! A Pod sandbox: the network namespace of a Pod, attached to the machine's network, until it is stopped.
//!
//! Invariant: the order is a runtime's (containerd `RunPodSandbox`, `StopPodSandbox`): namespace, loopback, ADD; on a failed
//! ADD a DEL; when stopped DEL while the namespace still exists, then the namespace.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::attachment::Attachment;
use super::network::Network;
use super::runtime::Runtime;
use crate::pod::Pod;

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
        let network = runtime.network()?;
        let pod = runtime.host().pod(name)?;
        pod.run(&["ip", "link", "set", "lo", "up"])?;
        let attachment = Attachment::of(&pod);
        let added = runtime.add(&network, &attachment).and_then(|result| {
            let address = first_address(&result)
                .with_context(|| format!("failed to find network info for sandbox in {result}"))?;
            Ok((result, address))
        });
        match added {
            Ok((result, address)) => Ok(Self { runtime: runtime.clone(), network, attachment, result, address, pod }),
            Err(error) => {
                if let Err(undo) = runtime.del(&network, &attachment) {
                    return Err(error.context(format!("and the DEL after it failed: {undo:#}")));
                }
                Err(error)
            }
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

    /// DEL, then the end of the namespace.
    ///
    /// # Errors
    /// As [`Runtime::del`].
    pub fn stop(self) -> Result<()> {
        self.runtime.del(&self.network, &self.attachment)
    }
}

/// First IPv4 address of a result (`ips` of 0.3.0 and later).
fn first_address(result: &Value) -> Option<Ipv4Addr> {
    let ips = result.get("ips")?.as_array()?;
    ips.iter().filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok()).next()
}
