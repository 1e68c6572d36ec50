//! nginx behind a Service, wrk in front of it, and all of nginx replaced meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Process, eventually};
use nix::sys::signal::Signal;

use super::{PODS, apply, nodes, service, start};
use crate::proxy::{Nodes, SOON, configured};

const ADDR: &str = "192.168.0.20";
const PORTS: (&str, u16, u16) = ("TCP", 80, 8080);

/// Replaces every endpoint twice while wrk asks from outside and from the node; what wrk counts as failed must be nothing.
pub(crate) fn no_request_fails_while_all_web_servers_are_replaced(mode: &str) -> Result<()> {
    let (_proxy, nodes) = start(mode)?;
    let (mut servers, mut marks) = serve(&nodes)?;
    while_asked(&nodes, || replace(&nodes, &mut servers, &mut marks))
}

/// Changes the mode in the file six times while wrk asks likewise.
#[allow(dead_code, reason = "a kernel without IPVS has one data path")]
pub(crate) fn no_request_fails_while_the_file_changes_the_mode() -> Result<()> {
    let nodes = nodes()?;
    let proxy = configured::start(&nodes, "ipvs")?;
    let _servers = serve(&nodes)?;
    while_asked(&nodes, || {
        for mode in ["nftables", "ipvs"].repeat(3) {
            configured::write_mode(&nodes, mode)?;
            configured::await_mode(&nodes, mode)?;
        }
        Ok(())
    })?;
    ensure!(proxy.is_running(), "{}", proxy.log());
    Ok(())
}

/// Two Pods with nginx behind the Service, and how many changes were marked for it.
fn serve(nodes: &Nodes) -> Result<(Vec<(&'static str, Process)>, usize)> {
    let mut marks = 0;
    let mut servers: Vec<(&str, Process)> = Vec::new();
    for pod in &PODS[..2] {
        servers.push((pod, nginx(nodes, pod)?));
    }
    apply(nodes, "web.yaml", &service("web", ADDR, PORTS, &PODS[..2]), &mut marks)?;
    Ok((servers, marks))
}

/// Does something while wrk asks from outside and from the node.
fn while_asked(nodes: &Nodes, work: impl FnOnce() -> Result<()>) -> Result<()> {
    nodes.outside()?.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])?;
    // The lab kernel tracks 8,192 connections; on a fast machine more than that would wait there to be forgotten.
    nodes.node()?.run(&["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1"])?;
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = [scope.spawn(|| wrk(nodes.outside()?, &ended)), scope.spawn(|| wrk(nodes.node()?, &ended))];
        let worked = work();
        ended.store(true, Ordering::Relaxed);
        clients.into_iter().try_for_each(|client| client.join().unwrap())?;
        worked
    })
}

/// Twice round all Pods: a new endpoint comes, an old one goes and ends when it has answered the requests that it has.
fn replace(nodes: &Nodes, servers: &mut Vec<(&'static str, Process)>, marks: &mut usize) -> Result<()> {
    let names = |servers: &[(&'static str, Process)]| servers.iter().map(|(pod, _)| *pod).collect::<Vec<_>>();
    for turn in 0..8 {
        let new = PODS[(turn + 2) % 4];
        servers.push((new, nginx(nodes, new)?));
        apply(nodes, "web.yaml", &service("web", ADDR, PORTS, &names(servers)), marks)?;
        let (old, server) = servers.remove(0);
        apply(nodes, "web.yaml", &service("web", ADDR, PORTS, &names(servers)), marks)?;
        server.signal(Signal::SIGQUIT)?;
        server.wait(SOON).with_context(|| format!("nginx of {old} still has connections"))?;
    }
    Ok(())
}

/// nginx in a Pod, which answers every request with the Pod's address.
fn nginx(nodes: &Nodes, pod: &'static str) -> Result<Process> {
    let (place, folder) = (nodes.pod(pod)?, format!("/run/nginx-{pod}"));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {folder}/{kind}; "))
        .collect();
    let configuration = format!(
        "daemon off; master_process off; pid {folder}/pid; error_log stderr warn;\nevents {{ worker_connections 512; }}\n\
         http {{ access_log off; {temporary}\nserver {{ listen 8080; location / {{ return 200 \"{pod}\\n\"; }} }} }}\n"
    );
    place.host().write(format!("{folder}/nginx.conf"), configuration)?;
    let file = format!("{folder}/nginx.conf");
    let server =
        place.command("nginx").args(["-p", &folder, "-e", "stderr", "-c", &file]).start(&format!("nginx {pod}"))?;
    eventually(SOON, || {
        ensure!(server.is_running(), "nginx ended: {}", server.log());
        let answer = lab::echo::fetch(place.host(), format!("{pod}:8080").parse()?, "/", Duration::from_secs(2))?;
        ensure!(answer.trim() == pod, "{answer}");
        Ok(())
    })?;
    Ok(server)
}

/// wrk for a few seconds at a time, each request by a connection of its own, until the replacement has ended.
fn wrk(from: &Host, ended: &AtomicBool) -> Result<()> {
    let url = format!("http://{ADDR}/");
    while !ended.load(Ordering::Relaxed) {
        let args = ["-t1", "-c2", "-d3s", "--timeout", "20s", "-H", "Connection: close", &url];
        let output = from.command("wrk").args(args).run()?.stdout;
        report(&output).with_context(|| format!("wrk on {}", from.name()))?;
    }
    Ok(())
}

/// What wrk says: requests were answered, and none failed.
fn report(text: &str) -> Result<()> {
    let answered = text.lines().find_map(|line| line.trim().split_once(" requests in ")).map(|(count, _)| count);
    let answered: u64 = answered.context("wrk reports no requests")?.trim().parse()?;
    ensure!(answered > 10, "only {answered} requests were made: {text}");
    let failed = ["Socket errors", "Non-2xx"].iter().any(|words| text.contains(words));
    ensure!(!failed, "requests failed: {text}");
    Ok(())
}
