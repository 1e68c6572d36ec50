//! containerd's CRI service as kubelet calls it: sandboxes of two nodes, ports and limits in go-cni's spelling, node readiness.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod netd_node;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, ensure};
use cni_node::cri::{Cri, PortMapping};
use cni_node::{NATIVE, Nodes, STOCK, ask, calls, configure, ensure_clean, leftovers, likeness, lone_node, record};
use lab::cni::{Attachment, Client, Runtime};
use lab::eventually;
use netd_node::SOON;
use serde_json::{Value, json};

fn tcp(host_port: i32) -> PortMapping {
    PortMapping { protocol: 0, container_port: 80, host_port, host_ip: String::new() }
}

fn sandboxes_of_two_nodes_talk_and_publish_ports() -> Result<()> {
    for lists in [[STOCK, NATIVE], [NATIVE, STOCK]] {
        let nodes = Nodes::start(lists)?;
        let (first, second) = (nodes.host("hdss7-21")?, nodes.host("hdss7-22")?);
        let (here, there) = (Cri::start(first)?, Cri::start(second)?);
        let (a, b) = (here.run("a", &[tcp(8080)], &[])?, there.run("b", &[], &[])?);
        let (address, other) = (here.address(&a)?, there.address(&b)?);
        ensure!(address.octets()[..3] == [172, 7, 21] && other.octets()[..3] == [172, 7, 22], "{address} {other}");
        for (said, expected) in [
            (here.ask(&a, &other.to_string())?, format!("{address} b")),
            (there.ask(&b, &address.to_string())?, format!("{other} a")),
            (there.ask(&b, "10.4.7.21:8080")?, "10.4.7.22 a".to_owned()),
            (ask(nodes.host("hdss7-200")?, "10.4.7.21:8080")?, "10.4.7.200 a".to_owned()),
            (ask(first, "127.0.0.1:8080")?, "172.7.21.1 a".to_owned()),
        ] {
            ensure!(said == expected, "the server said {said:?}, not {expected:?}");
        }
        for (cri, id, node) in [(&here, &a, first), (&there, &b, second)] {
            cri.stop(id)?;
            // kubelet stops a sandbox as often as it takes.
            cri.stop(id)?;
            cri.remove(id)?;
            ensure_clean(node)?;
        }
        ensure!(ask(first, "10.4.7.21:8080").is_err(), "the port is open without its sandbox");
    }
    Ok(())
}

fn node_is_ready_when_the_list_is_there_and_failed_sandboxes_leave_nothing() -> Result<()> {
    let node = lone_node(NATIVE)?;
    node.run(&["rm", "/etc/cni/net.d/10-cbr0.conflist"])?;
    let cri = Cri::start(&node)?;
    let condition = cri.network_ready()?;
    ensure!(!condition.is_true && condition.message.contains("cni plugin not initialized"), "{condition:?}");
    configure(&node, NATIVE)?;
    eventually(SOON, || {
        let condition = cri.network_ready()?;
        ensure!(condition.is_true, "{condition:?}");
        Ok(())
    })?;
    let (file, aside) = (node.path("/run/flannel/subnet.env"), node.path("/run/flannel/aside"));
    std::fs::rename(&file, &aside)?;
    let error = format!("{:#}", cri.run("early", &[tcp(8080)], &[]).unwrap_err());
    ensure!(error.contains("/run/flannel/subnet.env") && error.contains("netd"), "{error}");
    ensure_clean(&node)?;
    std::fs::rename(&aside, &file)?;
    // A taken port is refused with its holder, and the sandbox that failed takes nothing along.
    let holder = cri.run("holder", &[tcp(8080)], &[])?;
    let before = leftovers(&node)?;
    let error = format!("{:#}", cri.run("late", &[tcp(8080)], &[]).unwrap_err());
    ensure!(error.contains("8080") && error.contains(&holder), "{error}");
    ensure!(leftovers(&node)? == before);
    ensure!(ask(&node, "127.0.0.1:8080")?.ends_with(" holder"));
    cri.stop(&holder)?;
    cri.remove(&holder)?;
    ensure_clean(&node)
}

/// After a reboot the namespace is gone; containerd then passes an empty one to DEL.
fn sandbox_whose_namespace_is_gone_is_deleted() -> Result<()> {
    for list in [STOCK, NATIVE] {
        let node = lone_node(list)?;
        let cri = Cri::start(&node)?;
        let id = cri.run("web", &[tcp(8080)], &[])?;
        let file = node.run(&["sh", "-c", "echo /run/netns/cni-*"])?.stdout.trim().to_owned();
        node.run(&["umount", &file])?;
        std::fs::remove_file(node.path(&file))?;
        cri.stop(&id)?;
        cri.remove(&id)?;
        ensure_clean(&node)?;
    }
    Ok(())
}

fn sandboxes_started_at_once_get_addresses_of_their_own() -> Result<()> {
    const SANDBOXES: i32 = 12;
    let node = lone_node(NATIVE)?;
    let cri = Cri::start(&node)?;
    let ids: Vec<String> = thread::scope(|scope| {
        let start = |number: i32| {
            let cri = &cri;
            scope.spawn(move || cri.run(&format!("web-{number}"), &[tcp(9000 + number)], &[]))
        };
        let started: Vec<_> = (0..SANDBOXES).map(start).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect::<Result<_>>()
    })?;
    let addresses: BTreeSet<_> = ids.iter().map(|id| cri.address(id)).collect::<Result<_>>()?;
    ensure!(addresses.len() == ids.len(), "{addresses:?}");
    for (number, _) in (0..).zip(&ids) {
        ensure!(ask(&node, &format!("127.0.0.1:{}", 9000 + number))?.ends_with(&format!(" web-{number}")));
    }
    thread::scope(|scope| {
        let cri = &cri;
        let stopped: Vec<_> =
            ids.iter().map(|id| scope.spawn(move || cri.stop(id).and_then(|()| cri.remove(id)))).collect();
        stopped.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    ensure_clean(&node)
}

/// What kubelet makes of a Pod's annotations: containerd adds the largest burst it can write.
fn annotated_sandbox_is_limited() -> Result<()> {
    let node = lone_node(NATIVE)?;
    let cri = Cri::start(&node)?;
    let limits = [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "20M")];
    let id = cri.run("web", &[tcp(8080)], &limits)?;
    let shown = node.run(&["tc", "qdisc", "show"])?.stdout;
    let line = |start: &str, rate: &str| shown.lines().any(|line| line.contains(start) && line.contains(rate));
    ensure!(line("tbf 1: dev veth", "rate 10Mbit") && line("tbf 1: dev bwp", "rate 20Mbit"), "{shown}");
    ensure!(ask(&node, "127.0.0.1:8080")?.ends_with(" web"), "a limited sandbox answers");
    ensure!(leftovers(&node)?.iter().any(|left| left.starts_with("bwp")));
    cri.stop(&id)?;
    cri.remove(&id)?;
    let shown = node.run(&["tc", "qdisc", "show"])?.stdout;
    ensure!(!shown.contains("tbf"), "{shown}");
    ensure_clean(&node)
}

/// Calls in an order and with arguments in an order that do not depend on Go's maps and on what ran first.
fn ordered(calls: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = calls.iter().map(likeness::likened).collect();
    for call in &mut calls {
        let mut pairs: Vec<&str> = call["env"]["ARGS"].as_str().unwrap().split(';').collect();
        pairs.sort_unstable();
        call["env"]["ARGS"] = json!(pairs.join(";"));
    }
    let key = |call: &Value| (call["env"]["COMMAND"].to_string(), call["env"]["IFNAME"].to_string());
    calls.sort_by_key(|call| (key(call).0, key(call).1));
    calls
}

fn labs_runtime_calls_plugins_as_the_cri_service_does() -> Result<()> {
    for (list, plugins) in [(STOCK, &["flannel", "portmap", "loopback"][..]), (NATIVE, &["netd-cni", "loopback"])] {
        let node = lone_node(list)?;
        record(&node, plugins)?;
        let cri = Cri::start(&node)?;
        let ports =
            [tcp(8080), PortMapping { protocol: 1, container_port: 53, host_port: 8053, host_ip: "127.0.0.1".into() }];
        let limit = ("kubernetes.io/ingress-bandwidth", "10M");
        let id = cri.run("web", &ports, &[limit])?;
        cri.stop(&id)?;
        let real = ordered(&calls(&node)?);
        cri.remove(&id)?;
        // Removing deletes once more, from a namespace that is gone.
        let again = calls(&node)?;
        let is_late = |call: &Value| call["env"]["COMMAND"] == "DEL" && call["env"]["NETNS"] == "";
        ensure!(!again.is_empty() && again.iter().all(is_late), "{again:#?}");
        // The same sandbox by the lab's runtime.
        let runtime = Runtime::new(&node).acting_as(Client::Containerd1);
        let pod = node.pod("web")?;
        let attachment = Attachment::of(&pod)
            .with_container_id(&id)
            .args(&format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid-web"
            ))
            .capability(
                "portMappings",
                json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                       {"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}]),
            )
            .capability("bandwidth", json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX}));
        lab::cni::Sandbox::attach(&runtime, pod, attachment)?.stop()?;
        let ours = ordered(&calls(&node)?);
        ensure!(ours == real, "{ours:#?}\n--- and not\n{real:#?}");
        let add =
            real.iter().find(|call| call["stdin"]["runtimeConfig"].is_object()).context("no capability arrived")?;
        ensure!(add["stdin"]["runtimeConfig"]["portMappings"][0]["HostPort"] == 8080, "{add}");
        ensure_clean(&node)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    cni_node::suite(cni_node::containerd::obstacle()).run(lab::tests![
        sandboxes_of_two_nodes_talk_and_publish_ports,
        node_is_ready_when_the_list_is_there_and_failed_sandboxes_leave_nothing,
        sandbox_whose_namespace_is_gone_is_deleted,
        sandboxes_started_at_once_get_addresses_of_their_own,
        annotated_sandbox_is_limited,
        labs_runtime_calls_plugins_as_the_cri_service_does,
    ])
}
