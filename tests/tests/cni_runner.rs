//! Every verb in every version through the lab's runtime, as each of its clients, with the plugin under its names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::cni::{Attachment, Client, Network, PluginError, Runtime, Sandbox};
use lab::{Host, Need, Pod, bin, echo, eventually};
use serde_json::{Value, json};

const STOCK: &str = include_str!("../../configs/cni/10-flannel.conflist");
const NATIVE: &str = include_str!("../../configs/cni/10-netd.conflist");
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const CLIENTS: [Client; 5] = [Client::Cnitool, Client::Containerd1, Client::Containerd2, Client::Podman4, Client::CriO];
const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const SOON: Duration = Duration::from_secs(20);
const A_MOMENT: Duration = Duration::from_secs(3);

/// A node with a lease and the plugin under all of its names.
fn node() -> Result<Runtime> {
    let host = Host::start("hdss7-21.host.com")?;
    host.write("/run/flannel/subnet.env", SUBNET_ENV)?;
    host.run(&["sh", "-c", "rm -f /etc/cni/net.d/*"])?;
    let runtime = Runtime::new(&host);
    runtime.install(&bin("netd-cni")?, &["netd-cni", "flannel", "bridge", "portmap", "loopback"])?;
    Ok(runtime)
}

/// What of containers is on the machine: host ends, reservations and records, open ports.
fn left(host: &Host) -> Result<String> {
    let script = "ip -br link show type veth; find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip.*' 2>/dev/null\n\
        nft list ruleset | grep 'elements = '; exit 0";
    Ok(host.run(&["sh", "-c", script])?.stdout)
}

fn ensure_clean(runtime: &Runtime) -> Result<()> {
    let left = left(runtime.host())?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    Ok(())
}

fn code(error: &anyhow::Error) -> Option<u32> {
    error.downcast_ref::<PluginError>().map(|error| error.code)
}

/// One cell of the matrix of the reference's bridge tests.
#[derive(Debug, Clone, Copy)]
struct Cell {
    version: &'static str,
    family: &'static str,
    gateway: &'static str,
    port: &'static str,
}

const SUBNETS: [(&str, &str, &str); 2] =
    [("10.1.2.0/24", "10.1.2.2/24", "10.1.2.1"), ("fd00:1:2::/64", "fd00:1:2::2/64", "fd00:1:2::1")];

impl Cell {
    fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for version in VERSIONS {
            for family in ["v4", "v6", "dual"] {
                for gateway in ["isGateway", "isDefaultGateway"] {
                    for port in ["hairpinMode", "promiscMode", "none"] {
                        cells.push(Self { version, family, gateway, port });
                    }
                }
            }
        }
        cells
    }

    fn subnets(self) -> &'static [(&'static str, &'static str, &'static str)] {
        match self.family {
            "v4" => &SUBNETS[..1],
            "v6" => &SUBNETS[1..],
            _ => &SUBNETS,
        }
    }

    fn network(self, runtime: &Runtime) -> Result<Network> {
        let ranges: Vec<Value> = self.subnets().iter().map(|(subnet, ..)| json!([{"subnet": subnet}])).collect();
        let mut plugin = json!({"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "ranges": ranges}});
        plugin[self.gateway] = json!(true);
        if self.port != "none" {
            plugin[self.port] = json!(true);
        }
        runtime.parse(&json!({"name": "matrix", "cniVersion": self.version, "plugins": [plugin]}).to_string())
    }

    /// What the result must say, leaving out what is random: names and hardware addresses of the host end.
    fn expected_addresses(self) -> Vec<(String, String)> {
        self.subnets().iter().map(|(_, address, gateway)| ((*address).to_owned(), (*gateway).to_owned())).collect()
    }

    fn check_result(self, result: &Value, pod: &Pod) -> Result<()> {
        ensure!(result["cniVersion"] == self.version, "{result}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is_flat = self.version < "0.3.0";
        let ips: Vec<Value> = match is_flat {
            true => ["ip4", "ip6"].iter().filter_map(|family| result.get(family).cloned()).collect(),
            false => result["ips"].as_array().cloned().unwrap_or_default(),
        };
        let address = if is_flat { "ip" } else { "address" };
        let found: Vec<_> = ips.iter().map(|ip| (text(&ip[address]), text(&ip["gateway"]))).collect();
        ensure!(found == self.expected_addresses(), "{result}");
        if !is_flat {
            let with_family = ["0.3.0", "0.3.1", "0.4.0"].contains(&self.version);
            ensure!(
                ips.iter().all(|ip| ip.get("version").is_some() == with_family && ip["interface"] == 2),
                "{result}"
            );
            let names: Vec<String> =
                result["interfaces"].as_array().unwrap().iter().map(|i| text(&i["name"])).collect();
            ensure!(names[0] == "br0" && names[1].starts_with("veth") && names[2] == "eth0", "{names:?}");
            ensure!(result["interfaces"][2]["sandbox"] == pod.netns().display().to_string(), "{result}");
        }
        let routes = if is_flat {
            ips.iter().flat_map(|ip| ip["routes"].as_array()).flatten().count()
        } else {
            result["routes"].as_array().map_or(0, Vec::len)
        };
        let expected = if self.gateway == "isDefaultGateway" { self.subnets().len() } else { 0 };
        ensure!(routes == expected, "{routes} routes in {result}");
        Ok(())
    }

    /// Looks at the kernel.
    fn check_kernel(self, host: &Host, pod: &Pod) -> Result<()> {
        let inside = pod.run(&["sh", "-c", "ip -o address show dev eth0; ip -4 route; ip -6 route"])?.stdout;
        let bridge = host.run(&["ip", "-o", "address", "show", "dev", "br0"])?.stdout;
        for (_, address, gateway) in self.subnets() {
            ensure!(inside.contains(&format!(" {address} ")), "{inside}");
            ensure!(bridge.contains(&format!(" {gateway}/")), "{bridge}");
            let default = inside.contains(&format!("default via {gateway} "));
            ensure!(default == (self.gateway == "isDefaultGateway"), "{inside}");
            // A busy kernel opens a new link's queue some time after the link is up.
            eventually(SOON, || pod.run(&["ping", "-c1", "-W1", gateway]))?;
        }
        let modes = host.run(&["sh", "-c", "cat /sys/class/net/veth*/brport/hairpin_mode /sys/class/net/br0/flags"])?;
        let (hairpin, flags) = modes.stdout.trim().split_once('\n').context("hairpin mode and flags")?;
        ensure!((hairpin == "1") == (self.port == "hairpinMode"), "hairpin {hairpin}");
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16)?;
        // IFF_PROMISC
        ensure!((flags & 0x100 != 0) == (self.port == "promiscMode"), "flags {flags:x}");
        Ok(())
    }

    fn run(self, runtime: &Runtime, pod: &Pod) -> Result<()> {
        let (network, attachment) = (self.network(runtime)?, Attachment::of(pod));
        let result = runtime.add(&network, &attachment)?;
        self.check_result(&result, pod)?;
        self.check_kernel(runtime.host(), pod)?;
        if self.version >= "0.4.0" {
            runtime.check(&network, &attachment)?;
        }
        runtime.del(&network, &attachment)?;
        runtime.del(&network, &attachment)?;
        if self.version >= "0.4.0" {
            let error = runtime.check(&network, &attachment).unwrap_err();
            ensure!(code(&error) == Some(7) && error.to_string().contains("prevResult"), "{error:#}");
        }
        ensure_clean(runtime)?;
        ensure!(pod.run(&["ip", "link", "show", "dev", "eth0"]).is_err(), "the interface is still there");
        // The next cell begins with another bridge and a fresh range.
        runtime.host().run(&["sh", "-c", "ip link del br0 && rm -r /var/lib/cni/networks/matrix"])?;
        Ok(())
    }
}

fn add_check_del_del_in_every_family_gateway_port_mode_and_version() -> Result<()> {
    let runtime = node()?;
    let pod = runtime.host().pod("web")?;
    for cell in Cell::all() {
        cell.run(&runtime, &pod).with_context(|| format!("{cell:?}"))?;
    }
    Ok(())
}

fn hairpin_and_promiscuous_mode_exclude_each_other_in_every_version() -> Result<()> {
    let runtime = node()?;
    let pod = runtime.host().pod("web")?;
    for version in VERSIONS {
        let plugin = json!({"type": "bridge", "hairpinMode": true, "promiscMode": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}});
        let list = json!({"name": "matrix", "cniVersion": version, "plugins": [plugin]});
        let error = runtime.add(&runtime.parse(&list.to_string())?, &Attachment::of(&pod)).unwrap_err();
        ensure!(
            error.to_string().contains("cannot set hairpin mode and promiscuous mode at the same time"),
            "{error:#}"
        );
        ensure_clean(&runtime)?;
    }
    Ok(())
}

/// A Pod with a host port, if the client publishes ports through plugins.
fn web(runtime: &Runtime, name: &str, port: u16) -> Result<Sandbox> {
    let pod = runtime.host().pod(name)?;
    let attachment = Attachment::of(&pod).capability(
        "portMappings",
        json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}, {"hostPort": port, "containerPort": 80, "protocol": "udp"}]),
    );
    Sandbox::attach(runtime, pod, attachment)
}

fn pods_of_every_client_talk_and_publish_ports_with_both_lists() -> Result<()> {
    for list in [STOCK, NATIVE] {
        for client in CLIENTS {
            let runtime = node()?.acting_as(client);
            runtime.configure("10-cbr0.conflist", list)?;
            let served = serve_two_pods(&runtime, list == NATIVE);
            served.with_context(|| format!("{client:?} with {}", runtime.network().unwrap().version()))?;
        }
    }
    Ok(())
}

fn serve_two_pods(runtime: &Runtime, is_native: bool) -> Result<()> {
    let network = runtime.network()?;
    let knows_newest = !matches!(runtime.client(), Client::Containerd1 | Client::Podman4);
    let version = if !is_native {
        "0.3.1"
    } else if knows_newest {
        "1.1.0"
    } else {
        "1.0.0"
    };
    ensure!(network.version() == version, "the list runs as {}", network.version());
    runtime.status(&network)?;
    let (one, two) = (web(runtime, "one", 8080)?, web(runtime, "two", 8081)?);
    ensure!(one.result()["cniVersion"] == version, "{}", one.result());
    let (_server, _other) = (echo::serve(one.pod(), "one", 80)?, echo::serve(two.pod(), "two", 80)?);
    let answer = echo::ask_tcp(one.pod(), (two.address(), 80).into(), SOON)?;
    ensure!(answer.name == "two" && answer.client.ip() == one.address(), "{answer:?}");
    let published = echo::ask_tcp(runtime.host(), "127.0.0.1:8081".parse()?, A_MOMENT);
    ensure!(published.is_ok_and(|answer| answer.name == "two") == (runtime.client() != Client::CriO));
    if version >= "0.4.0" {
        one.check()?;
    }
    // containerd never calls GC.
    if matches!(runtime.client(), Client::Cnitool | Client::CriO) {
        runtime.gc(&network, Some(&[one.attachment().clone()]))?;
        let rows = left(runtime.host())?;
        ensure!(!rows.contains(two.attachment().container_id()), "GC left {rows}");
    }
    two.stop()?;
    let answer = echo::ask_tcp(runtime.host(), (one.address(), 80).into(), SOON)?;
    ensure!(answer.name == "one");
    one.stop()?;
    ensure_clean(runtime)
}

/// A list of the plugin in a version, in its one-entry form.
fn native_in(runtime: &Runtime, version: &str) -> Result<Network> {
    runtime.parse(&json!({"name": "cbr0", "cniVersion": version, "plugins": [{"type": "netd-cni"}]}).to_string())
}

fn version_of_a_list_may_change_under_its_pods() -> Result<()> {
    let runtime = node()?;
    let pod = runtime.host().pod("web")?;
    let attachment = Attachment::of(&pod);
    for from in VERSIONS {
        for to in VERSIONS {
            let changed = || -> Result<()> {
                runtime.add(&native_in(&runtime, from)?, &attachment)?;
                let network = native_in(&runtime, to)?;
                // A result of 0.1.0 or 0.2.0 names no interfaces that CHECK could look at.
                if to >= "0.4.0" && from >= "0.3.0" {
                    runtime.check(&network, &attachment)?;
                }
                runtime.del(&network, &attachment)?;
                ensure_clean(&runtime)
            };
            changed().with_context(|| format!("from {from} to {to}"))?;
        }
    }
    Ok(())
}

fn status_and_gc_of_both_lists_in_1_1_0() -> Result<()> {
    for list in [STOCK.replace("0.3.1", "1.1.0"), NATIVE.to_owned()] {
        let runtime = node()?;
        runtime.configure("10-cbr0.conflist", &list)?;
        let network = runtime.network()?;
        runtime.status(&network)?;
        let (kept, crashed) = (web(&runtime, "kept", 8080)?, web(&runtime, "crashed", 8081)?);
        // The runtime was killed and lost its cache; only the verb GC can know.
        let forgotten = crashed.attachment().clone();
        runtime.host().run(&["sh", "-c", &format!("rm /var/lib/cni/results/*{}*", forgotten.container_id())])?;
        drop(crashed);
        runtime.gc(&network, Some(&[kept.attachment().clone()]))?;
        let rows = left(runtime.host())?;
        ensure!(!rows.contains(forgotten.container_id()) && rows.contains(kept.attachment().container_id()), "{rows}");
        kept.check()?;
        // Without a list nothing is valid: what cnitool's gc does.
        runtime.gc(&network, None)?;
        ensure_clean(&runtime)?;
        std::fs::remove_file(runtime.host().path("/run/flannel/subnet.env"))?;
        let error = runtime.status(&network).unwrap_err();
        ensure!(code(&error) == Some(50) && error.to_string().contains("/run/flannel/subnet.env"), "{error:#}");
        kept.stop()?;
    }
    Ok(())
}

fn disabled_verbs_reach_no_plugin() -> Result<()> {
    let runtime = node()?;
    let mut list: Value = serde_json::from_str(NATIVE)?;
    list["disableCheck"] = json!(true);
    list["disableGC"] = json!("true");
    runtime.configure("10-cbr0.conflist", &list.to_string())?;
    let pod = runtime.run_pod("web")?;
    let network = runtime.network()?;
    pod.pod().run(&["ip", "address", "flush", "dev", "eth0"])?;
    pod.check()?;
    runtime.gc(&network, None)?;
    ensure!(left(runtime.host())?.contains("veth"), "GC was disabled and removed the Pod");
    pod.stop()?;
    ensure_clean(&runtime)
}

/// Debian's `tuning` is a plugin of others behind ours, our `portmap` one behind that: the result goes through both.
fn plugins_of_others_chain_between_ours() -> Result<()> {
    let runtime = node()?;
    let tuning = Path::new("/usr/lib/cni/tuning");
    ensure!(tuning.exists(), "{} is missing: apt-get install containernetworking-plugins", tuning.display());
    runtime.install(tuning, &["tuning"])?;
    let list = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [
        {"type": "netd-cni", "isDefaultGateway": true},
        {"type": "tuning", "mac": "02:11:22:33:44:55", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    runtime.configure("10-cbr0.conflist", &list.to_string())?;
    let pod = web(&runtime, "web", 8080)?;
    let _server = echo::serve(pod.pod(), "web", 80)?;
    ensure!(pod.result()["interfaces"][2]["mac"] == "02:11:22:33:44:55", "{}", pod.result());
    // CHECK of the first plugin gets the last one's result, hardware address of tuning included.
    pod.check()?;
    let answer = eventually(SOON, || echo::ask_tcp(runtime.host(), "127.0.0.1:8080".parse()?, A_MOMENT))?;
    ensure!(answer.name == "web", "{answer:?}");
    pod.stop()?;
    ensure_clean(&runtime)
}

fn plugin_supports_what_crio_asks_before_it_takes_a_network() -> Result<()> {
    let runtime = node()?.acting_as(Client::CriO);
    for version in VERSIONS {
        for name in ["netd-cni", "flannel", "bridge", "portmap", "loopback"] {
            let list = json!({"name": "x", "cniVersion": version, "plugins": [{"type": name}]});
            runtime.validate(&runtime.parse(&list.to_string())?).with_context(|| format!("{name} {version}"))?;
        }
    }
    runtime
        .configure("05-newer.conflist", r#"{"name": "x", "cniVersion": "2.0.0", "plugins": [{"type": "netd-cni"}]}"#)?;
    let error = runtime.network().unwrap_err().to_string();
    ensure!(error.contains("plugin netd-cni does not support config version \"2.0.0\""), "{error}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            add_check_del_del_in_every_family_gateway_port_mode_and_version,
            hairpin_and_promiscuous_mode_exclude_each_other_in_every_version,
            pods_of_every_client_talk_and_publish_ports_with_both_lists,
            version_of_a_list_may_change_under_its_pods,
            status_and_gc_of_both_lists_in_1_1_0,
            disabled_verbs_reach_no_plugin,
            plugins_of_others_chain_between_ours,
            plugin_supports_what_crio_asks_before_it_takes_a_network,
        ],
    )
}
