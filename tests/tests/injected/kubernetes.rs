//! netd with the Kubernetes API as its source: the own Node is what is written there.
//!
//! Invariant: the Node is new in each run, so that no run finds what another one wrote.

use anyhow::{Result, ensure};
use lab::kubernetes::Release;
use lab::{Command, Host};
use serde_json::Value;

use crate::injected::netd::{self, VXLAN};
use crate::injected::{Scene, says_all_in_place};
use crate::kube_nodes::{self, NODES, Net, PREFIX};

/// A node of the reference cluster.
pub(crate) struct Netd(Net);

impl Netd {
    pub(crate) fn start() -> Result<Self> {
        let net = Net::start(Release::V1_20, kube_nodes::VXLAN)?;
        put(&net, 22)?;
        net.put_node(NODES[0], &["172.7.21.0/24"])?;
        Ok(Self(net))
    }
}

/// The Node of another one, as flannel leaves it.
fn put(net: &Net, n: u8) -> Result<()> {
    let (data, address) = (format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:01:{n}"}}"#), format!("10.4.7.{n}"));
    let said = [("backend-type", "vxlan"), ("backend-data", data.as_str()), ("public-ip", address.as_str())];
    net.put_flannel(&format!("flannel-{n}"), &[&format!("172.7.{n}.0/24")], &said).map(drop)
}

impl Scene for Netd {
    fn signs(&self) -> [&'static str; 2] {
        ["172.7.22.0/24", "172.7.23.0/24"]
    }

    fn daemon(&self) -> Result<Command> {
        let command = netd::daemon(self.node()?)?.env("NODE_NAME", NODES[0]);
        Ok(command.args(["--kube-subnet-mgr", "--kubeconfig-file=/etc/kubernetes/kubeconfig"]))
    }

    fn node(&self) -> Result<&Host> {
        self.0.host(NODES[0])
    }

    fn state(&self) -> Result<String> {
        let object = self.0.node(NODES[0])?;
        let annotations = object["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        let mut said = String::new();
        for (name, value) in &annotations {
            // The hardware address is each run's own, see `identity`.
            let is_constant = name.starts_with(PREFIX) && !name.ends_with("backend-data");
            said += &if is_constant { format!("{name} {value}\n") } else { String::new() };
        }
        let data = annotations.get(&format!("{PREFIX}/backend-data")).and_then(Value::as_str).unwrap_or_default();
        let identity = netd::identity(self.node()?, &VXLAN, data)?;
        let condition = self.0.condition(NODES[0]).unwrap_or_default();
        Ok(format!("{}{said}{identity}{condition:?}", netd::node_state(self.node()?, &VXLAN)?))
    }

    fn clear(&self) -> Result<()> {
        netd::clean(self.node()?)?;
        self.0.api.delete(&format!("/api/v1/nodes/{}", NODES[0]))?;
        self.0.put_node(NODES[0], &["172.7.21.0/24"])?;
        if self.0.node("flannel-23").is_ok() { self.0.api.delete("/api/v1/nodes/flannel-23").map(drop) } else { Ok(()) }
    }

    fn change(&self) -> Result<()> {
        put(&self.0, 23)
    }

    fn is_in_place(&self) -> Result<()> {
        // It is said once the network is up, by a request of its own.
        let condition = self.0.condition(NODES[0])?;
        ensure!(condition[1] == "FlannelIsUp", "{condition:?}");
        says_all_in_place(self.node()?, "netd")
    }
}
