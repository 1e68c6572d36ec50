//! containerd (`ctr run --cni`) on the reference cluster, next to podman: containers of two nodes, nothing left behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod netd_node;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use cni_node::containerd::{self, Containerd};
use cni_node::podman::Podman;
use cni_node::{NATIVE, Nodes, STOCK, ask, calls, ensure_clean, leftovers, likeness, lone_node, record};
use lab::cni::{Attachment, Client, Runtime};
use serde_json::json;

fn containers_of_podman_and_containerd_reach_each_other_across_nodes() -> Result<()> {
    for lists in [[STOCK, NATIVE], [NATIVE, STOCK]] {
        let nodes = Nodes::start(lists)?;
        let (first, second) = (nodes.host("hdss7-21")?, nodes.host("hdss7-22")?);
        let (podman, containerd) = (Podman::with_cni(first)?, Containerd::start(second)?);
        let a = podman.start("a", &["-p", "8080:80"])?;
        let container = containerd.foreground("b")?;
        let b = containerd.address("b")?;
        ensure!(b.octets()[..3] == [172, 7, 22], "{b} is not of the node's subnet");
        let said = podman.ask("a", &b.to_string())?;
        ensure!(said.starts_with(&format!("{a} ")), "the container of containerd saw {said}");
        let said = containerd.ask("b", &a.to_string())?;
        ensure!(said == format!("{b} a"), "the container of podman saw {said}");
        ensure!(containerd.ask("b", "10.4.7.21:8080")?.ends_with(" a"));
        let said = ask(second, &b.to_string())?;
        ensure!(said.starts_with("172.7.22.1 "), "{said}");
        containerd.end(&container)?;
        podman.remove("a")?;
        ensure_clean(first)?;
        ensure_clean(second)?;
    }
    Ok(())
}

fn ended_container_leaves_nothing() -> Result<()> {
    for list in [STOCK, NATIVE] {
        let node = lone_node(list)?;
        let containerd = Containerd::start(&node)?;
        for name in ["one", "two"] {
            let container = containerd.foreground(name)?;
            ensure!(leftovers(&node)?.iter().any(|row| row.starts_with("veth")));
            containerd.end(&container)?;
            ensure_clean(&node)?;
        }
    }
    Ok(())
}

fn ctr_passes_the_namespace_by_process_and_deletes_without_one() -> Result<()> {
    let node = lone_node(STOCK)?;
    record(&node, &["flannel", "portmap"])?;
    let containerd = Containerd::start(&node)?;
    let container = containerd.foreground("web")?;
    containerd.end(&container)?;
    let calls = calls(&node)?;
    let order: Vec<_> = calls.iter().map(|call| (&call["stdin"]["type"], &call["env"]["COMMAND"])).collect();
    ensure!(
        order
            == [
                (&json!("flannel"), &json!("ADD")),
                (&json!("portmap"), &json!("ADD")),
                (&json!("portmap"), &json!("DEL")),
                (&json!("flannel"), &json!("DEL"))
            ],
        "{order:?}"
    );
    for call in &calls {
        let env = &call["env"];
        ensure!(env["CONTAINERID"] == "default-web" && env["IFNAME"] == "eth0" && env["ARGS"] == "", "{env}");
        // ctr has no option for ports.
        ensure!(call["stdin"].get("runtimeConfig").is_none(), "{call}");
        let netns = env["NETNS"].as_str().unwrap();
        match env["COMMAND"].as_str().unwrap() {
            "ADD" => ensure!(netns.starts_with("/proc/") && netns.ends_with("/ns/net"), "{netns}"),
            _ => ensure!(netns.is_empty(), "{netns}"),
        }
    }
    ensure!(calls[1]["stdin"]["prevResult"]["ips"][0]["address"].as_str().unwrap().starts_with("172.7.21."));
    ensure_clean(&node)
}

fn labs_runtime_calls_plugins_and_caches_results_as_containerd_does() -> Result<()> {
    for (list, plugins) in [(STOCK, &["flannel", "portmap"][..]), (NATIVE, &["netd-cni"])] {
        let node = lone_node(list)?;
        record(&node, plugins)?;
        let containerd = Containerd::start(&node)?;
        let container = containerd.foreground("web")?;
        let cached = likeness::cached(&node)?;
        containerd.end(&container)?;
        let real: Vec<_> = calls(&node)?.iter().map(likeness::likened).collect();
        // The same container by the lab's runtime.
        let runtime = Runtime::new(&node).acting_as(Client::Containerd1).path(&["/opt/cni/bin", "/usr/lib/cni"]);
        let network = runtime.network()?;
        let pod = node.pod("web")?;
        let attachment = Attachment::of(&pod).with_container_id("default-web").args("");
        runtime.add(&network, &attachment)?;
        ensure!(likeness::cached(&node)? == cached, "{:#}\n--- and not\n{cached:#}", likeness::cached(&node)?);
        runtime.del(&network, &attachment.netns(""))?;
        let ours: Vec<_> = calls(&node)?.iter().map(likeness::likened).collect();
        ensure!(ours == real, "{ours:#?}\n--- and not\n{real:#?}");
        drop(pod);
        ensure_clean(&node)?;
    }
    Ok(())
}

/// `ctr` never calls DEL for a container it does not wait for; libcni's cache still knows it.
fn detached_container_that_ctr_forgets_is_collected_by_gc() -> Result<()> {
    for list in [STOCK, NATIVE] {
        let node = lone_node(list)?;
        let containerd = Containerd::start(&node)?;
        containerd.detached("gone")?;
        let kept = containerd.foreground("kept")?;
        containerd.kill("gone")?;
        containerd.ctr(&["tasks", "delete", "gone"]).or_else(|_| containerd.ctr(&["version"]))?;
        let before = leftovers(&node)?;
        ensure!(before.iter().any(|row| row.contains("default-gone")), "ctr has learnt to clean up: {before:#?}");
        let runtime = Runtime::new(&node);
        let network = runtime.network()?;
        let valid: Vec<_> = runtime
            .cached(&network)
            .into_iter()
            .filter(|attachment| attachment.container_id() == "default-kept")
            .collect();
        ensure!(valid.len() == 1);
        runtime.gc(&network, Some(&valid))?;
        let after = leftovers(&node)?;
        ensure!(!after.iter().any(|row| row.contains("default-gone")), "{after:#?}");
        ensure!(ask(&node, &containerd.address("kept")?.to_string())?.starts_with("172.7.21.1 "));
        containerd.end(&kept)?;
        ensure_clean(&node)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    cni_node::suite(containerd::obstacle()).run(lab::tests![
        containers_of_podman_and_containerd_reach_each_other_across_nodes,
        ended_container_leaves_nothing,
        ctr_passes_the_namespace_by_process_and_deletes_without_one,
        labs_runtime_calls_plugins_and_caches_results_as_containerd_does,
        detached_container_that_ctr_forgets_is_collected_by_gc,
    ])
}
