//! Real firewalls with their own default rules beside netd: Pods on different nodes reach each other, again after the firewall
//! has loaded its rules anew, and what its owner denies stays denied.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lab::{Absent, Host, Need, Pod, Process, allowing_for_load, eventually};
use netd_node::dual::{self, DUAL};
use netd_node::entrance::{closed_entrance, open_as_doctor_says};
use netd_node::{A_SECOND, HOST_GW, Net, SOON, VXLAN, pod};

/// The node with the firewall.
const NODE: &str = "hdss7-21";

/// Its Pod, and the one on the other node.
fn pods(net: &Net) -> Result<(Pod, Pod)> {
    Ok((pod(net.host(NODE)?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?))
}

fn ping(from: &Pod, to: &str) -> Result<()> {
    from.run(&["ping", "-c1", "-W0.2", to]).map(drop)
}

/// A connection in each direction, which no earlier one makes an established one.
fn pass(web: &Pod, server: &Pod) -> Result<()> {
    ping(web, "172.7.22.2").context("out")?;
    ping(server, "172.7.21.2").context("in")
}

fn eventually_pass(web: &Pod, server: &Pod) -> Result<()> {
    eventually(SOON, || pass(web, server))
}

/// Runs what loads the firewall's rules anew, and expects Pods to reach each other within a second after its end.
fn pass_again_after(host: &Host, reload: &[&str], web: &Pod, server: &Pod) -> Result<()> {
    host.run(reload)?;
    let ended = Instant::now();
    eventually(SOON, || pass(web, server)).with_context(|| format!("after {reload:?}"))?;
    let took = ended.elapsed();
    eprintln!("{reload:?}: Pods pass {took:?} after its end");
    ensure!(took < allowing_for_load(A_SECOND), "{reload:?}: {took:?} until Pods passed again");
    Ok(())
}

fn eventually_warns(net: &Net, part: &str) -> Result<()> {
    eventually(SOON, || {
        let warnings = net.status(NODE)?["warnings"].to_string();
        ensure!(warnings.contains(part), "{warnings}");
        Ok(())
    })
}

/// The node's interface in a zone, cbr0 and the tunnel's device in none.
fn pods_pass_whatever_zone_of_firewalld_the_interface_is_in() -> Result<()> {
    for (config, zone, backend) in [
        (HOST_GW, "drop", "nftables"),
        (HOST_GW, "work", "nftables"),
        (HOST_GW, "drop", "iptables"),
        (VXLAN, "drop", "nftables"),
        (VXLAN, "public", "nftables"),
        (VXLAN, "work", "iptables"),
    ] {
        let net = Net::start(config)?;
        let host = net.host(NODE)?;
        let backend = format!("s/^FirewallBackend=.*/FirewallBackend={backend}/");
        host.run(&["sed", "-i", &backend, "/etc/firewalld/firewalld.conf"])?;
        let _firewalld = Firewalld::start(host)?;
        // Another default zone than the interface's, and an interface of strangers in a third one.
        for args in [
            &["--set-default-zone=internal"][..],
            &["--permanent", &format!("--zone={zone}"), "--add-interface=eth0"],
            &["--permanent", &format!("--zone={zone}"), "--add-port=10247/udp"],
            &["--permanent", "--zone=dmz", "--add-interface=eth9"],
            &["--reload"],
        ] {
            host.command("firewall-cmd").args(args).run()?;
        }
        let _netd = net.both()?;
        let (web, server) = pods(&net)?;
        if config == VXLAN {
            let fix = closed_entrance(host, "the tunnel's packets to UDP port 8472")?;
            ensure!(fix.contains(&format!("--zone={zone} ")), "{fix}");
            open_as_doctor_says(host, "the tunnel's packets to UDP port 8472")?;
        }
        eventually_pass(&web, &server).with_context(|| format!("{config} {zone}"))?;
        for reload in ["--reload", "--complete-reload"] {
            pass_again_after(host, &["firewall-cmd", reload], &web, &server)?;
        }
        let rules = host.run(&["nft", "list", "ruleset"])?.stdout;
        let of_dmz = rules.split("FWD_dmz {").nth(1).and_then(|rest| rest.split('}').next());
        ensure!(of_dmz.is_some_and(|chain| !chain.contains("netd:")), "strangers may pass: {rules}");
        let of_dmz = |line: &str| line.contains("iifname \"eth9\"") && line.contains("netd:");
        ensure!(!rules.lines().any(of_dmz), "strangers may pass: {rules}");
    }
    Ok(())
}

fn ipv6_passes_firewalld_and_again_after_its_reload() -> Result<()> {
    let net = dual::net(DUAL)?;
    let host = net.host(NODE)?;
    let _firewalld = Firewalld::start(host)?;
    let _netd = dual::both(&net, dual::SUBNETS)?;
    let (web, server) = (dual::pod(host, "21")?, dual::pod(net.host("hdss7-22")?, "22")?);
    let pass = || {
        for (from, to) in [(&web, ["172.7.22.2", "fd00:7:0:22::2"]), (&server, ["172.7.21.2", "fd00:7:0:21::2"])] {
            to.iter().try_for_each(|to| ping(from, to).with_context(|| (*to).to_owned()))?;
        }
        Ok::<_, anyhow::Error>(())
    };
    for node in ["10.4.7.22", "fd00:10:4:7::22"] {
        let says = format!("the tunnel's packets to UDP port 8472 from {node}");
        let fix = closed_entrance(host, &says)?;
        host.run(&["sh", "-ec", &fix])?;
    }
    eventually(SOON, pass)?;
    for reload in ["--reload", "--complete-reload"] {
        host.run(&["firewall-cmd", reload])?;
        eventually(SOON, pass).with_context(|| reload.to_owned())?;
    }
    Ok(())
}

/// A bus and firewalld on it, as systemd starts them.
struct Firewalld(#[allow(dead_code, reason = "kept for their drop")] [Process; 2]);

/// By which firewalld 2.1 and later keeps its table for itself, unless an operator says no.
const OWNER: &str = "NftablesTableOwner=yes";

impl Firewalld {
    /// With a table that others may write.
    fn start(host: &Host) -> Result<Self> {
        let shared = OWNER.replace("yes", "no");
        host.run(&["sed", "-i", &format!("s/^{OWNER}/{shared}/"), "/etc/firewalld/firewalld.conf"])?;
        Self::start_as_it_comes(host)
    }

    fn start_as_it_comes(host: &Host) -> Result<Self> {
        host.run(&["mkdir", "-p", "/run/dbus"])?;
        let bus = host.command("dbus-daemon").args(["--system", "--nofork", "--nopidfile"]).start("dbus-daemon")?;
        let socket = host.path("/run/dbus/system_bus_socket");
        eventually(SOON, || {
            ensure!(socket.exists(), "no bus");
            Ok(())
        })?;
        let firewalld = host.command("firewalld").args(["--nofork", "--nopid"]).start("firewalld")?;
        eventually(SOON, || host.run(&["firewall-cmd", "--state"]).map(drop))?;
        Ok(Self([firewalld, bus]))
    }
}

/// True for firewalld 2.3 and later, which chooses a zone by the interface that a packet leaves by as well.
fn has_pairs(host: &Host) -> Result<bool> {
    Ok(host.run(&["nft", "list", "table", "inet", "firewalld"])?.stdout.contains("chain filter_FORWARD_POLICIES {"))
}

fn pods_pass_firewalld_and_again_after_its_reload() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    let _firewalld = Firewalld::start(host)?;
    let _netd = net.both()?;
    let (web, server) = pods(&net)?;
    // The tunnel's own packets end here: whether they may is the operator's decision, as with flannel.
    open_as_doctor_says(host, "the tunnel's packets to UDP port 8472 from 10.4.7.22")?;
    eventually_pass(&web, &server)?;
    // As of 2.3 a zone's denial stands in the chain that chooses the zone.
    let last = if has_pairs(host)? { "filter_FORWARD_POLICIES" } else { "filter_FWD_public" };
    let chain = "inet firewalld filter_FORWARD drops forwarded packets in its chain";
    eventually_warns(&net, &format!("{chain} {last}; netd accepts"))?;
    for reload in ["--reload", "--complete-reload", "--reload"] {
        pass_again_after(host, &["firewall-cmd", reload], &web, &server)?;
    }
    // Another default zone, whose chains are made while ours stand in the first one's.
    host.run(&["firewall-cmd", "--permanent", "--zone=internal", "--add-port=8472/udp"])?;
    host.run(&["firewall-cmd", "--reload"])?;
    pass_again_after(host, &["firewall-cmd", "--set-default-zone=internal"], &web, &server)?;
    pass_again_after(host, &["firewall-cmd", "--set-default-zone=public"], &web, &server)?;
    let rules = host.run(&["nft", "list", "table", "inet", "firewalld"])?.stdout;
    ensure!(rules.matches("netd: Pod network").count() == 2, "{rules}");
    Ok(())
}

fn pods_pass_a_firewalld_that_keeps_its_table_for_itself_as_netd_advises() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    if !host.read("/etc/firewalld/firewalld.conf")?.lines().any(|line| line == OWNER) {
        return Err(Absent::CannotBeHad(format!("this firewalld has no {OWNER}, as 2.1 and later")).into());
    }
    let _firewalld = Firewalld::start_as_it_comes(host)?;
    let nodes = [NODE, "hdss7-22"].map(|node| net.launch(node, &[]));
    let [Ok(netd), Ok(other)] = &nodes else { bail!("{nodes:?}") };
    other.wait_for_line("ready: every lease", SOON)?;
    let advice = "firewall-cmd --permanent --zone=trusted --add-source=NETWORK";
    netd.wait_for_line(advice, SOON)?;
    let (web, server) = pods(&net)?;
    host.run(&["sh", "-ec", &advice.replace("NETWORK", "172.7.0.0/16")])?;
    host.run(&["firewall-cmd", "--permanent", "--zone=public", "--add-port=8472/udp"])?;
    host.run(&["firewall-cmd", "--reload"])?;
    eventually_pass(&web, &server)?;
    // Until then no packet of a Pod was forwarded.
    netd.wait_for_line("ready: every lease", SOON)?;
    pass_again_after(host, &["firewall-cmd", "--complete-reload"], &web, &server)
}

/// The node's interface in a zone: firewalld 2.3 has no packet meet a policy that comes in and leaves by interfaces in none.
fn denials_of_firewalld_deny_beside_netd() -> Result<()> {
    let net = Net::start(HOST_GW)?;
    let host = net.host(NODE)?;
    let _firewalld = Firewalld::start(host)?;
    for args in [
        &["--permanent", "--zone=public", "--add-interface=eth0"][..],
        &["--permanent", "--new-policy=pods"],
        &["--permanent", "--policy=pods", "--add-ingress-zone=ANY"],
        &["--permanent", "--policy=pods", "--add-egress-zone=ANY"],
        &["--permanent", "--policy=pods", "--add-rich-rule=rule family=ipv4 source address=172.7.21.66 drop"],
        &["--reload"],
    ] {
        host.command("firewall-cmd").args(args).run()?;
    }
    let _netd = net.both()?;
    let (web, server) = pods(&net)?;
    eventually_pass(&web, &server)?;
    web.run(&["ip", "address", "add", "172.7.21.66/24", "dev", "eth0"])?;
    ensure!(web.run(&["ping", "-c2", "-W1", "-I", "172.7.21.66", "172.7.22.2"]).is_err(), "a denial was overruled");
    pass(&web, &server)
}

fn pods_pass_ufw_and_again_after_its_reload() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    // Echo requests are what these tests send, and what ufw lets pass of its own accord.
    host.run(&["sed", "-i", "/ufw-before-forward.*icmp-type echo-request/d", "/etc/ufw/before.rules"])?;
    host.run(&["ufw", "allow", "10247/udp"])?;
    host.run(&["ufw", "--force", "enable"])?;
    let _netd = net.both()?;
    let (web, server) = pods(&net)?;
    open_as_doctor_says(
        host,
        "the policy of ip filter INPUT denies the tunnel's packets to UDP port 8472 from 10.4.7.22",
    )?;
    // What it says for ipip, which ufw has no word for.
    let protocol =
        "sed -i '/^COMMIT/i -A ufw-before-input -p 4 -s 10.4.7.0/24 -j ACCEPT' /etc/ufw/before.rules && ufw reload";
    host.run(&["sh", "-ec", protocol])?;
    let rules = host.run(&["iptables", "-S", "ufw-before-input"])?.stdout;
    ensure!(
        rules.contains("-s 10.4.7.0/24 -p ipencap -j ACCEPT") || rules.contains("-s 10.4.7.0/24 -p 4 -j ACCEPT"),
        "{rules}"
    );
    eventually_pass(&web, &server)?;
    eventually_warns(&net, "foreign chain ip filter FORWARD drops forwarded packets by policy; netd accepts")?;
    for reload in [&["ufw", "reload"][..], &["ufw", "default", "reject", "routed"], &["ufw", "--force", "enable"]] {
        pass_again_after(host, reload, &web, &server)?;
    }
    // What its owner denies stays denied.
    host.run(&["ufw", "route", "deny", "from", "172.7.21.66"])?;
    web.run(&["ip", "address", "add", "172.7.21.66/24", "dev", "eth0"])?;
    eventually_pass(&web, &server)?;
    ensure!(web.run(&["ping", "-c2", "-W1", "-I", "172.7.21.66", "172.7.22.2"]).is_err(), "a denial was overruled");
    host.run(&["ufw", "disable"])?;
    eventually_pass(&web, &server)
}

/// Starts Docker's daemon and waits until it serves.
fn dockerd(host: &Host) -> Result<Process> {
    let dockerd = host.command("dockerd").args(["--storage-driver=vfs"]).start("dockerd")?;
    dockerd.wait_for_line("API listen on", SOON)?;
    Ok(dockerd)
}

fn pods_pass_docker_and_again_after_its_restart() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    // It makes the policy drop where it is the one that turns forwarding on.
    let first = dockerd(host)?;
    let policy = host.run(&["iptables", "-S", "FORWARD"])?.stdout;
    ensure!(policy.contains("-P FORWARD DROP"), "{policy}");
    let _netd = net.both()?;
    let (web, server) = pods(&net)?;
    eventually_pass(&web, &server)?;
    eventually_warns(&net, "foreign chain ip filter FORWARD drops forwarded packets by policy; netd accepts")?;
    first.terminate(SOON)?;
    let _second = dockerd(host)?;
    let served = Instant::now();
    eventually_pass(&web, &server)?;
    ensure!(served.elapsed() < allowing_for_load(A_SECOND), "{:?} until Pods passed again", served.elapsed());
    // What its owner denies in the chain that Docker keeps for that stays denied.
    host.run(&["iptables", "-I", "DOCKER-USER", "-s", "172.7.21.66", "-j", "DROP"])?;
    web.run(&["ip", "address", "add", "172.7.21.66/24", "dev", "eth0"])?;
    ensure!(web.run(&["ping", "-c2", "-W1", "-I", "172.7.21.66", "172.7.22.2"]).is_err(), "a denial was overruled");
    pass(&web, &server)
}

/// `/etc/nftables.conf` as Debian documents a workstation's, with a policy that drops and one denial of its own.
const NFTABLES_CONF: &str = "#!/usr/sbin/nft -f
flush ruleset
table inet filter {
	chain input {
		type filter hook input priority filter; policy accept;
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state invalid drop
		ct state established,related accept
		ip saddr 172.7.21.66 drop
	}
}
";

fn pods_pass_nftables_conf_and_again_after_its_reload() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host(NODE)?;
    host.write("/etc/nftables.conf", NFTABLES_CONF)?;
    host.run(&["nft", "-f", "/etc/nftables.conf"])?;
    let _netd = net.both()?;
    let (web, server) = pods(&net)?;
    eventually_pass(&web, &server)?;
    eventually_warns(&net, "foreign chain inet filter forward drops forwarded packets by policy; netd accepts")?;
    for _ in 0..2 {
        // It takes netd's own tables along.
        pass_again_after(host, &["nft", "-f", "/etc/nftables.conf"], &web, &server)?;
    }
    eventually(SOON, || host.run(&["nft", "list", "table", "ip", "netd"]).map(drop))?;
    web.run(&["ip", "address", "add", "172.7.21.66/24", "dev", "eth0"])?;
    ensure!(web.run(&["ping", "-c2", "-W1", "-I", "172.7.21.66", "172.7.22.2"]).is_err(), "a denial was overruled");
    pass(&web, &server)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            pods_pass_firewalld_and_again_after_its_reload,
            denials_of_firewalld_deny_beside_netd,
            pods_pass_a_firewalld_that_keeps_its_table_for_itself_as_netd_advises,
            pods_pass_ufw_and_again_after_its_reload,
            pods_pass_docker_and_again_after_its_restart,
            pods_pass_nftables_conf_and_again_after_its_reload,
            pods_pass_whatever_zone_of_firewalld_the_interface_is_in,
            ipv6_passes_firewalld_and_again_after_its_reload,
        ],
    )
}
