//! One interface of one container: what a runtime tells a plugin by `CNI_*` variables and capability arguments.
//!
//! Invariant: container ID and interface name together name an attachment; ADD, CHECK and DEL of one attachment get the same.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::pod::Pod;

/// An attachment of a Pod to a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    pub(crate) container_id: String,
    pub(crate) netns: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
    pub(crate) capabilities: Map<String, Value>,
}

impl Attachment {
    /// The first interface of a Pod as containerd names it: `eth0`, a container ID of 64 hexadecimal digits, and the Pod's
    /// name and namespace in `CNI_ARGS`.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let container_id = container_id(pod.name());
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container_id}",
            pod.name()
        );
        let netns = pod.netns().display().to_string();
        Self { container_id, netns, ifname: "eth0".to_owned(), args, capabilities: Map::new() }
    }

    /// Another interface name.
    #[must_use]
    pub fn ifname(mut self, ifname: &str) -> Self {
        ifname.clone_into(&mut self.ifname);
        self
    }

    /// Another container ID.
    #[must_use]
    pub fn with_container_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.container_id);
        self
    }

    /// Another network namespace path; empty as after a reboot, when only DEL may follow.
    #[must_use]
    pub fn netns(mut self, path: &str) -> Self {
        path.clone_into(&mut self.netns);
        self
    }

    /// Another value of `CNI_ARGS`.
    #[must_use]
    pub fn args(mut self, args: &str) -> Self {
        args.clone_into(&mut self.args);
        self
    }

    /// Offers a capability argument, as `portMappings`; it reaches the plugins that declare the capability.
    #[must_use]
    pub fn capability(mut self, name: &str, value: Value) -> Self {
        self.capabilities.insert(name.to_owned(), value);
        self
    }

    /// The container's ID.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }
}

/// 64 hexadecimal digits made of the name's bytes, the same on every call.
fn container_id(name: &str) -> String {
    let mut id = String::new();
    for byte in name.bytes().cycle().take(32) {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}
