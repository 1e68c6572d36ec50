//! Whose a virtual server is: what the proxy takes over, what it gives up, and what it never touches.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, echo, eventually};
use proxy::{Nodes, SERVICES, SOON, WEB, WEB_SERVICE, WEB_YAML, await_reals, servers};

/// What a kube-proxy leaves of a Service at 192.168.0.77.
const LEFT: &str = "-A -t 192.168.0.77:80 -s rr\n-a -t 192.168.0.77:80 -r 172.7.21.2:80 -m -w 1\n";

fn leave(node: &Host, rules: &str) -> Result<()> {
    node.run(&["ip", "link", "add", "kube-ipvs0", "type", "dummy"])?;
    node.run(&["ip", "address", "add", "192.168.0.77/32", "dev", "kube-ipvs0"])?;
    node.command("ipvsadm").arg("-R").input(rules).run()?;
    Ok(())
}

fn a_virtual_server_at_a_services_key_is_taken_over_with_its_real_servers() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    let old = "-A -t 192.168.0.10:80 -s rr\n-a -t 192.168.0.10:80 -r 10.4.7.200:80 -m -w 1\n";
    node.command("ipvsadm").arg("-R").input(old).run()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let _proxy = nodes.proxy()?;
    let wanted = ["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"].map(|pod| (pod, 1));
    await_reals(node, &wanted)?;
    // Made by somebody else while the proxy runs, before the Service is there.
    node.command("ipvsadm").arg("-R").input(old.replace("0.10:80 ", "0.11:80 ")).run()?;
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("0.10", "0.11"))?;
    eventually(SOON, || {
        let found = servers(node)?;
        let of_api: Vec<_> = found.iter().filter(|line| line.contains("192.168.0.11")).collect();
        ensure!(of_api == ["-A -t 192.168.0.11:80 -s rr"], "{of_api:?}");
        Ok(())
    })
}

/// Servers at a Service's keys with options that this product never asks for, and servers that are nobody's business.
const OPTIONS: &str = "-A -t 192.168.0.10:80 -s sh -p 300 -b sh-port
-a -t 192.168.0.10:80 -r 172.7.21.2:80 -g -w 7
-a -t 192.168.0.10:80 -r 172.7.22.2:80 -i -w 1
-a -t 192.168.0.10:80 -r 10.4.7.200:80 -i -w 0
-A -u 192.168.0.10:53 -s wlc -o
-a -u 192.168.0.10:53 -r 10.4.7.200:53 -g -w 3
-A -f 7 -s rr
-A -t 10.4.7.21:8080 -s rr -p 60
-a -t 10.4.7.21:8080 -r 10.4.7.200:8080 -g -w 2
";

fn options_of_others_are_put_right_at_the_take_over_and_later() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    node.command("ipvsadm").arg("-R").input(OPTIONS).run()?;
    let dns = |text: &str| text.replace("port: 80}", "port: 80}, {name: dns, port: 53, protocol: UDP}");
    let slice = proxy::slice(&["172.7.21.2", "172.7.22.2"]);
    nodes.publish("web.yaml", &format!("{}---\n{}", dns(WEB_SERVICE), dns(&slice)))?;
    let _proxy = nodes.proxy()?;
    let mut wanted = vec![
        "-A -f 7 -s rr",
        "-A -t 10.4.7.21:8080 -s rr -p 60",
        "-a -t 10.4.7.21:8080 -r 10.4.7.200:8080 -g -w 2",
        "-A -t 192.168.0.10:80 -s rr",
        "-a -t 192.168.0.10:80 -r 172.7.21.2:80 -m -w 1",
        "-a -t 192.168.0.10:80 -r 172.7.22.2:80 -m -w 1",
        "-A -u 192.168.0.10:53 -s rr",
        "-a -u 192.168.0.10:53 -r 172.7.21.2:53 -m -w 1",
        "-a -u 192.168.0.10:53 -r 172.7.22.2:53 -m -w 1",
    ];
    wanted.sort_unstable();
    let in_order = |after: &str| {
        eventually(SOON, || {
            ensure!(servers(node)? == wanted, "after {after}: {:?}", servers(node)?);
            Ok(())
        })
    };
    in_order("the start")?;
    for words in [
        "-e -t 192.168.0.10:80 -r 172.7.21.2:80 -g -w 1",
        "-e -t 192.168.0.10:80 -r 172.7.21.2:80 -i -w 1",
        "-e -t 192.168.0.10:80 -r 172.7.21.2:80 -m -w 9",
        "-E -t 192.168.0.10:80 -s rr -p 77",
        "-E -t 192.168.0.10:80 -s sh -b sh-port",
        "-E -u 192.168.0.10:53 -s rr -o",
        "-a -u 192.168.0.10:53 -r 10.4.7.200:53 -g -w 5",
    ] {
        node.command("ipvsadm").args(words.split(' ').collect::<Vec<_>>()).run()?;
        in_order(words)?;
    }
    Ok(())
}

fn a_source_that_is_suddenly_empty_takes_no_service_away() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("0.10", "0.11"))?;
    let proxy = nodes.proxy()?;
    eventually(SOON, || {
        ensure!(servers(node)?.len() == 6, "{:?}", servers(node)?);
        Ok(())
    })?;
    let before = servers(node)?;
    let alarmed = || -> Result<()> {
        eventually(SOON, || {
            let status = nodes.status()?;
            ensure!(status["alarm"].is_string() && status["ok"] == false, "{status}");
            Ok(())
        })?;
        ensure!(servers(node)? == before, "{:?}", servers(node)?);
        ensure!(echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON)?.name.starts_with("172.7."));
        Ok(())
    };
    node.run(&["sh", "-c", &format!("rm {SERVICES}/*")])?;
    alarmed()?;
    // A new start on a directory that is not mounted yet.
    ensure!(proxy.terminate(SOON)?.success());
    let _proxy = nodes.proxy()?;
    alarmed()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    nodes.publish("api.yaml", &WEB_SERVICE.replace("web", "api").replace("0.10", "0.11"))?;
    eventually(SOON, || {
        ensure!(nodes.status()?["ok"] == true, "{}", nodes.status()?);
        Ok(())
    })
}

fn a_second_daemon_and_a_clean_up_beside_one_are_refused() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    let words = ["--services-dir=/run/services", "--cluster-cidr=172.7.0.0/16"];
    for words in [&words[..], &["--cleanup"]] {
        let error = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(words).run().unwrap_err();
        let text = format!("{error:#}");
        ensure!(text.contains("another ipvs-proxy (process "), "{text}");
    }
    await_reals(nodes.node()?, &["172.7.21.2", "172.7.21.3", "172.7.22.2", "172.7.22.3"].map(|pod| (pod, 1)))?;
    // The lock ends with its holder, in whatever way that ends.
    proxy.kill()?;
    nodes.proxy().map(drop)
}

fn a_kube_proxy_that_runs_is_named() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    node.run(&["cp", "/bin/sleep", "/run/kube-proxy"])?;
    let rival = node.command("/run/kube-proxy").arg("1000").start("kube-proxy")?;
    let proxy = nodes.proxy()?;
    proxy.wait_for_line("runs in this network namespace", SOON)?;
    eventually(SOON, || {
        let advice = nodes.status()?["advice"].to_string();
        ensure!(advice.contains("kube-proxy (process "), "{advice}");
        Ok(())
    })?;
    // A Pod with the node's processes and fewer rights than kube-proxy does not see its network namespace, and takes nothing from it.
    ensure!(proxy.terminate(SOON)?.success());
    node.command("ipvsadm").arg("-R").input(LEFT).run()?;
    node.run(&["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])?;
    node.run(&["ipset", "add", "KUBE-CLUSTER-IP", "192.168.0.77,tcp:80"])?;
    let (before, few) = (servers(node)?, ["--bounding-set=-all,+net_admin,+net_raw", "--"]);
    let own = node.run(&["pgrep", "-x", "kube-proxy"])?.stdout;
    let namespace = format!("/proc/{}/ns/net", own.trim());
    node.run(&["readlink", &namespace])?;
    let hidden = node.command("setpriv").args(few).args(["readlink", &namespace]).run();
    ensure!(hidden.is_err(), "the namespace can be read: {hidden:?}");
    let refused = node.command("setpriv").args(few).arg(lab::bin("ipvs-proxy")?).arg("--cleanup-kube-proxy").run();
    let text = format!("{:#}", refused.unwrap_err());
    ensure!(text.contains("kube-proxy (process ") && text.contains("stop it"), "{text}");
    ensure!(servers(node)? == before, "{before:?} {:?}", servers(node)?);
    drop(rival);
    // Without it there is something to be removed.
    let said = node.command(lab::bin("ipvs-proxy")?).arg("--cleanup-kube-proxy").run()?.stdout;
    ensure!(said.contains("rows of IPVS") && !servers(node)?.iter().any(|line| line.contains("0.77")), "{said}");
    Ok(())
}

fn cleanup_without_a_record_removes_nothing() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    leave(node, LEFT)?;
    let state = || -> Result<String> {
        Ok(servers(node)?.join("\n") + &node.run(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"])?.stdout)
    };
    let before = state()?;
    let said = node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?.stdout;
    ensure!(said.contains("nothing is removed"), "{said}");
    ensure!(state()? == before, "before:\n{before}\nafter:\n{}", state()?);
    Ok(())
}

fn cleanup_removes_what_is_recorded_and_nothing_else() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let proxy = nodes.proxy()?;
    eventually(SOON, || {
        ensure!(nodes.status()?["ok"] == true);
        Ok(())
    })?;
    ensure!(proxy.terminate(SOON)?.success());
    let foreign = "-A -t 10.4.7.21:8080 -s rr";
    node.command("ipvsadm").arg("-R").input(format!("{foreign}\n")).run()?;
    let said = node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run()?.stdout;
    ensure!(said.contains("removed 1 of IPVS (virtual servers"), "{said}");
    ensure!(servers(node)? == [foreign], "{:?}", servers(node)?);
    let left = node.run(&["ip", "-o", "link"])?.stdout + &node.run(&["nft", "list", "tables"])?.stdout;
    ensure!(!left.contains("kube-ipvs0") && !left.contains("ipvs-proxy"), "{left}");
    Ok(())
}

fn a_start_that_found_no_source_leaves_the_take_over_to_the_next() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    leave(node, LEFT)?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let flags = ["--etcd-endpoints=http://10.4.7.250:2379", "--cluster-cidr=172.7.0.0/16"];
    let first = node.command(lab::bin("ipvs-proxy")?).args(flags).start("ipvs-proxy")?;
    eventually(SOON, || node.run(&["nft", "list", "chain", "ip", "ipvs-proxy", "postrouting"]).map(drop))?;
    ensure!(first.terminate(SOON)?.success());
    ensure!(servers(node)?.len() == 2, "nothing is removed without a source: {:?}", servers(node)?);
    let _second = nodes.proxy()?;
    eventually(SOON, || {
        let left = servers(node)?.join("\n") + &node.run(&["ip", "-o", "-4", "address"])?.stdout;
        ensure!(!left.contains("192.168.0.77"), "{left}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_virtual_server_at_a_services_key_is_taken_over_with_its_real_servers,
            options_of_others_are_put_right_at_the_take_over_and_later,
            a_source_that_is_suddenly_empty_takes_no_service_away,
            a_second_daemon_and_a_clean_up_beside_one_are_refused,
            a_kube_proxy_that_runs_is_named,
            cleanup_without_a_record_removes_nothing,
            cleanup_removes_what_is_recorded_and_nothing_else,
            a_start_that_found_no_source_leaves_the_take_over_to_the_next,
        ],
    )
}
