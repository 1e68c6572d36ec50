//! netd with etcd as its source, for each backend.
//!
//! Invariant: what a run chooses anew (hardware address, key) is no part of the state; that the own lease has it is.

use anyhow::{Context, Result};
use injection::launcher;
use lab::{Command, Host};

use super::{Scene, rules, says_all_in_place};
use crate::netd_node::{self, Net};

/// What differs from one backend to another.
pub(crate) struct Backend {
    config: &'static str,
    /// Whether the node has both families.
    is_dual: bool,
    /// Value of the lease of the n-th other node.
    lease: fn(u8) -> String,
    /// Prints what the kernel has of it.
    pub(crate) state: &'static str,
    /// Prints what the own lease says of this node's device.
    pub(crate) identity: &'static str,
}

pub(crate) const HOST_GW: Backend = Backend {
    config: netd_node::HOST_GW,
    is_dual: false,
    lease: |n| netd_node::lease(&format!("10.4.7.{n}"), "host-gw"),
    state: "true",
    identity: "echo host-gw",
};

pub(crate) const VXLAN: Backend = Backend {
    config: netd_node::VXLAN,
    is_dual: false,
    lease: |n| netd_node::lease(&format!("10.4.7.{n}"), &format!("02:00:00:00:01:{n}")),
    state: "ip -d link show flannel.1 | grep -v link/ether | sed 's/^[0-9]*: //; s/qlen.*//'; ip -4 -br address show dev flannel.1; \
            ip neigh show nud permanent | sort; bridge fdb show dev flannel.1 | sort",
    identity: "cat /sys/class/net/flannel.1/address",
};

pub(crate) const WIREGUARD: Backend = Backend {
    config: r#"{"Network":"172.7.0.0/16","Backend":{"Type":"wireguard"}}"#,
    is_dual: false,
    lease: |n| {
        let key = format!("hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066Spjqqb{n}o=");
        format!(
            r#"{{"PublicIP":"10.4.7.{n}","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}}}}"#
        )
    },
    state: "ip -d link show flannel-wg | grep -v link/ | sed 's/^[0-9]*: //; s/qlen.*//'; ip -4 -br address show dev flannel-wg; \
            for what in listen-port peers endpoints allowed-ips preshared-keys persistent-keepalive; do wg show flannel-wg $what | sort; done; \
            stat -c %a /var/lib/netd/wgkey",
    identity: "wg show flannel-wg public-key",
};

/// Value of the lease of a node with both families.
fn dual_lease(n: u8) -> String {
    let data = |mac: &str| format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{mac}:{n}"}}"#);
    let ips = format!(r#""PublicIP":"10.4.7.{n}","PublicIPv6":"fd00:10:4:7::{n}""#);
    format!(r#"{{{ips},"BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#, data("01"), data("06"))
}

/// Prints what the kernel has of vxlan in both families.
const DUAL_STATE: &str = "for device in flannel.1 flannel-v6.1; do \
            ip -d link show $device | grep -v link/ether | sed 's/^[0-9]*: //; s/qlen.*//'; ip -o address show dev $device scope global | sed 's/^[0-9]*: //'; \
            bridge fdb show dev $device | sort; done; ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort; \
            ip -6 route | grep 'proto 121'; sysctl net.ipv6.conf.all.forwarding";
const DUAL_IDENTITY: &str = "cat /sys/class/net/flannel.1/address /sys/class/net/flannel-v6.1/address";

pub(crate) const DUAL: Backend = Backend {
    config: netd_node::dual::DUAL,
    is_dual: true,
    lease: dual_lease,
    state: DUAL_STATE,
    identity: DUAL_IDENTITY,
};

pub(crate) const FLOWTABLE: Backend = Backend {
    config: r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:7::/48","Backend":{"Type":"vxlan"},"Flowtable":true}"#,
    ..DUAL
};

/// One of the others is reached without a tunnel, the other one by it.
pub(crate) const IPIP: Backend = Backend {
    config: r#"{"Network":"172.7.0.0/16","Backend":{"Type":"auto","Tunnel":"ipip"}}"#,
    is_dual: false,
    lease: |n| {
        let ip = if n == 22 { "10.4.7.22".to_owned() } else { format!("10.9.9.{n}") };
        format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"ipip"}}"#)
    },
    state: "ip -d link show flannel.ipip | sed 's/^[0-9]*: //; s/qlen.*//'; ip -4 -br address show dev flannel.ipip",
    identity: "echo ipip",
};

pub(crate) const EXTENSION: Backend = Backend {
    config: r#"{"Network":"172.7.0.0/16","Backend":{"Type":"extension"}}"#,
    is_dual: false,
    lease: |n| {
        format!(r#"{{"PublicIP":"10.4.7.{n}","PublicIPv6":null,"BackendType":"extension","BackendData":"key of {n}"}}"#)
    },
    state: "find /run/netd/extension -type f | sort | while read file; do echo $file; cat $file; done",
    identity: "echo extension",
};

/// A node of the reference cluster.
pub(crate) struct Netd {
    net: Net,
    backend: &'static Backend,
}

impl Netd {
    pub(crate) fn start(backend: &'static Backend) -> Result<Self> {
        let net = if backend.is_dual { netd_node::dual::net(backend.config)? } else { Net::start(backend.config)? };
        let scene = Self { net, backend };
        scene.put(22)?;
        // A gateway to what is beyond the own network.
        scene.node()?.run(&["ip", "route", "add", "default", "via", "10.4.7.200"])?;
        Ok(scene)
    }

    /// The key of the n-th node.
    fn key(&self, n: u8) -> String {
        let v6 = if self.backend.is_dual { format!("&fd00:7:0:{n}::-64") } else { String::new() };
        format!("172.7.{n}.0-24{v6}")
    }

    fn put(&self, n: u8) -> Result<()> {
        self.net.etcd.put(&format!("{SUBNETS}/{}", self.key(n)), &(self.backend.lease)(n))
    }

    /// What the own lease says.
    fn own(&self) -> Result<String> {
        let others = [self.key(22), self.key(23)];
        let own = self.net.subnets()?.into_iter().find(|key| !others.contains(key));
        let value = self.net.etcd.get(&format!("{SUBNETS}/{}", own.context("no own lease")?))?;
        Ok(value.unwrap_or_default())
    }
}

pub(crate) const SUBNETS: &str = "/coreos.com/network/subnets";

/// What a node has of netd but for its source: kernel, files and parameters.
pub(crate) fn node_state(node: &Host, backend: &Backend) -> Result<String> {
    let common = "ip route; cat /run/flannel/subnet.env; ls /run/netd | grep -v http.sock; sysctl net.ipv4.ip_forward";
    let script = format!("{}\n{common}", backend.state);
    Ok(rules(node)? + &node.command("sh").args(["-c", &script]).output()?.stdout)
}

/// Whether what `lease` says of this node's device is so.
pub(crate) fn identity(node: &Host, backend: &Backend, lease: &str) -> Result<String> {
    let identity = node.command("sh").args(["-c", backend.identity]).output()?.stdout;
    let is_said = !identity.trim().is_empty() && identity.lines().all(|line| lease.contains(line.trim()));
    Ok(format!("the lease names the device: {is_said}\n"))
}

/// Takes away what netd made.
pub(crate) fn clean(node: &Host) -> Result<()> {
    node.command(lab::bin("netd")?).args(["cleanup", "--yes", "--files"]).run()?;
    node.run(&["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]).map(drop)
}

/// netd, started by what a supervisor waits for.
pub(crate) fn daemon(node: &Host) -> Result<Command> {
    let command = node.command(launcher()[0]).args(&launcher()[1..]).arg(lab::bin("netd")?);
    Ok(command.args(["--iface=eth0", "--ip-masq"]))
}

impl Scene for Netd {
    fn signs(&self) -> [&'static str; 2] {
        ["172.7.22.0/24", "172.7.23.0/24"]
    }

    fn daemon(&self) -> Result<Command> {
        Ok(daemon(self.node()?)?.arg(format!("--etcd-endpoints={}", self.net.etcd.endpoints())))
    }

    fn node(&self) -> Result<&Host> {
        self.net.host("hdss7-21")
    }

    fn state(&self) -> Result<String> {
        let identity = identity(self.node()?, self.backend, &self.own()?)?;
        Ok(format!("{}{identity}{:?}", node_state(self.node()?, self.backend)?, self.net.subnets()?))
    }

    fn clear(&self) -> Result<()> {
        clean(self.node()?)?;
        let key = format!("{SUBNETS}/{}", self.key(23));
        if self.net.etcd.get(&key)?.is_some() { self.net.etcd.delete(&key) } else { Ok(()) }
    }

    fn change(&self) -> Result<()> {
        self.put(23)
    }

    fn is_in_place(&self) -> Result<()> {
        says_all_in_place(self.node()?, "netd")
    }
}
