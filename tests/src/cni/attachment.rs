//! One interface of one container: what a runtime gives a plugin by `CNI_*` variables and capability arguments.
//!
//! Invariant: container ID and interface name together name an attachment; ADD, CHECK and DEL of one attachment get the same.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::client::Client;
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

    /// The same in a client's own form: containerd sends the pairs in the random order of a Go map (here `IgnoreUnknown` comes
    /// last, which a plugin must bear) and offers the Pod's annotations; its structures have no JSON names.
    #[must_use]
    pub fn given_by(mut self, client: Client) -> Self {
        if client.is_containerd() {
            let mut pairs: Vec<&str> = self.args.split(';').collect();
            pairs.reverse();
            self.args = pairs.join(";");
            self.capabilities.entry("io.kubernetes.cri.pod-annotations").or_insert_with(|| json!({}));
            for (name, value) in &mut self.capabilities {
                spell_as_go_cni(name, value);
            }
        }
        if client == Client::CriO {
            self.capabilities.remove("portMappings");
        }
        self
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

    /// What libcni verifies before it executes the first plugin of an ADD (`pkg/utils/utils.go`).
    pub(crate) fn validate(&self, network: &str) -> Result<()> {
        let is_word = |text: &str| {
            let mut bytes = text.bytes();
            bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        let complaint = match () {
            () if self.container_id.is_empty() => "missing containerID".to_owned(),
            () if !is_word(&self.container_id) => format!("invalid characters in containerID; {}", self.container_id),
            () if network.is_empty() => "missing network name:".to_owned(),
            () if !is_word(network) => format!("invalid characters found in network name; {network}"),
            () if self.ifname.is_empty() => "interface name is empty".to_owned(),
            () if self.ifname.len() > 15 => {
                "interface name is too long; interface name should be less than 16 characters".to_owned()
            }
            () if [".", ".."].contains(&self.ifname.as_str()) => "interface name is . or ..".to_owned(),
            () if self.ifname.contains(['/', ':']) || self.ifname.contains(char::is_whitespace) => {
                "interface name contains / or : or whitespace characters".to_owned()
            }
            () => return Ok(()),
        };
        bail!(complaint)
    }
}

/// Capability arguments of go-cni (`types.go`): all members, with the names of the Go fields.
fn spell_as_go_cni(name: &str, value: &mut Value) {
    let members: &[(&str, &str, Value)] = match name {
        "portMappings" => &[
            ("hostPort", "HostPort", json!(0)),
            ("containerPort", "ContainerPort", json!(0)),
            ("protocol", "Protocol", json!("")),
            ("hostIP", "HostIP", json!("")),
        ],
        "bandwidth" => &[
            ("ingressRate", "IngressRate", json!(0)),
            ("ingressBurst", "IngressBurst", json!(0)),
            ("egressRate", "EgressRate", json!(0)),
            ("egressBurst", "EgressBurst", json!(0)),
        ],
        "dns" => &[
            ("servers", "Servers", Value::Null),
            ("searches", "Searches", Value::Null),
            ("options", "Options", Value::Null),
        ],
        _ => return,
    };
    let objects = match value {
        Value::Array(objects) => objects.as_mut_slice(),
        single => std::slice::from_mut(single),
    };
    for object in objects {
        let member = |(from, to, absent): &(&str, &str, Value)| {
            ((*to).to_owned(), object.get(*from).or_else(|| object.get(*to)).unwrap_or(absent).clone())
        };
        *object = Value::Object(members.iter().map(member).collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        let (container_id, netns) = ("c1".to_owned(), "/run/netns/x".to_owned());
        let args = "IgnoreUnknown=1;K8S_POD_NAME=web".to_owned();
        Attachment { container_id, netns, ifname: "eth0".to_owned(), args, capabilities: Map::new() }
            .capability("portMappings", json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
            .capability("bandwidth", json!({"ingressRate": 1000, "ingressBurst": 4294967295_u64}))
    }

    #[test]
    fn containerd_writes_members_as_go_fields_and_leaves_none_out() {
        let given = attachment().given_by(Client::Containerd1);
        assert_eq!(
            given.capabilities["portMappings"],
            json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}])
        );
        assert_eq!(
            given.capabilities["bandwidth"],
            json!({"IngressRate": 1000, "IngressBurst": 4294967295_u64, "EgressRate": 0, "EgressBurst": 0})
        );
        assert_eq!(given.args, "K8S_POD_NAME=web;IgnoreUnknown=1");
        assert_eq!(given.clone().given_by(Client::Containerd1).capabilities, given.capabilities);
    }

    #[test]
    fn crio_keeps_the_conventional_names_and_publishes_ports_itself() {
        let given = attachment().given_by(Client::CriO);
        assert!(!given.capabilities.contains_key("portMappings"));
        assert_eq!(given.capabilities["bandwidth"]["ingressRate"], 1000);
        assert_eq!(given.args, "IgnoreUnknown=1;K8S_POD_NAME=web");
    }

    #[test]
    fn names_that_libcni_refuses_before_it_executes_anything() {
        for (attachment, network, complaint) in [
            (attachment(), "cbr0", ""),
            (attachment().with_container_id(""), "cbr0", "missing containerID"),
            (attachment().with_container_id("-x"), "cbr0", "invalid characters in containerID"),
            (attachment(), "", "missing network name"),
            (attachment(), "a/b", "invalid characters found in network name"),
            (attachment().ifname(""), "cbr0", "interface name is empty"),
            (attachment().ifname("sixteen-letters-"), "cbr0", "interface name is too long"),
            (attachment().ifname(".."), "cbr0", "interface name is . or .."),
            (attachment().ifname("eth 0"), "cbr0", "whitespace"),
        ] {
            let found = attachment.validate(network).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                found.contains(complaint) && found.is_empty() == complaint.is_empty(),
                "{found:?}, not {complaint:?}"
            );
        }
    }
}
