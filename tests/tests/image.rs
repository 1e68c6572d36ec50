//! The image of the three programs: built by podman, run by podman and containerd with the rights that the DaemonSets give, and no more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod cni_node;
mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cni_node::containerd::{self, Containerd};
use cni_node::ours::{self, ARCHIVE};
use cni_node::{NATIVE, lone_node};
use lab::{Cluster, Etcd, Host, eventually};
use netd_node::SOON;

const IMAGE: &str = "localhost/netd:lab";

/// What a DaemonSet's container may: configure the network, and write what is mounted for it.
const CONFINED: [&str; 6] = [
    "--network=host",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=ALL",
    "--cap-add=NET_ADMIN",
    "--security-opt=no-new-privileges",
];

/// A Service that the page shows.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 192.168.0.10, ports: [{name: http, port: 80}]}\n";

/// What libcni keeps of a Pod that the page shows.
const ATTACHMENT: &str = r#"{"kind": "cniCacheV1", "containerId": "c1", "networkName": "cbr0", "ifName": "eth0",
    "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "cart-1"]],
    "result": {"cniVersion": "1.0.0", "ips": [{"address": "172.7.21.9/24"}]}}"#;

fn obstacle() -> Option<String> {
    ours::obstacle().or_else(containerd::obstacle)
}

/// A node of the cluster that podman can run on: it has addresses, and routes to the other nodes.
fn node_of(cluster: &Cluster) -> Result<&Host> {
    let node = cluster.host("hdss7-21")?;
    cni_node::show_empty_folders(node)?;
    Ok(node)
}

fn image_holds_the_three_static_programs_and_nothing_else() -> Result<()> {
    let node = lone_node(NATIVE)?;
    let podman = ours::save(&node, IMAGE)?;
    let layers = "mkdir /run/layers && tar -C /run/layers -xf /run/netd.tar && for layer in /run/layers/*.tar; do tar -tf $layer; done";
    let listed = node.run(&["sh", "-c", layers])?.stdout;
    let mut files: Vec<&str> = listed.lines().filter(|line| !line.ends_with('/')).collect();
    files.sort_unstable();
    ensure!(files == ["usr/local/bin/ipvs-proxy", "usr/local/bin/netd", "usr/local/bin/netd-cni"], "{files:?}");
    for name in ["netd", "ipvs-proxy"] {
        let version = podman.run(&["run", "--rm", "--network=none", IMAGE, name, "--version"])?;
        ensure!(version.starts_with(name), "{version}");
    }
    Ok(())
}

fn static_program_resolves_names_in_an_image_without_libraries() -> Result<()> {
    let cluster = Cluster::reference()?;
    let node = node_of(&cluster)?;
    let etcd = Etcd::start([node])?;
    etcd.put("/coreos.com/network/config", r#"{"Network": "172.7.0.0/16"}"#)?;
    let podman = ours::build(node, IMAGE)?;
    let add = format!("--add-host=etcd.lab:{}", node.address()?);
    let question = ["run", "--rm", "--network=host", &add, IMAGE, "netd", "config", "show"];
    let said = podman.run(&[&question[..], &["--etcd-endpoints=http://etcd.lab:2379"]].concat())?;
    ensure!(said.contains("172.7.0.0/16"), "{said}");
    Ok(())
}

fn netd_and_the_proxy_work_with_one_capability_and_a_read_only_root() -> Result<()> {
    let cluster = Cluster::reference()?;
    let node = node_of(&cluster)?;
    node.run(&["sysctl", "-q", "-w", "net.ipv4.ip_forward=0"])?;
    node.write("/etc/netd/net-conf.json", r#"{"Network": "172.7.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
    node.write("/etc/services.d/web.yaml", SERVICE)?;
    node.run(&[
        "mkdir",
        "-p",
        "/run/flannel",
        "/run/netd",
        "/var/lib/netd",
        "/run/ipvs-proxy",
        "/var/lib/cni/results",
    ])?;
    node.write("/var/lib/cni/results/cbr0-c1-eth0", ATTACHMENT)?;
    node.run(&["chmod", "-R", "go=", "/var/lib/cni/results"])?;
    let podman = ours::build(node, IMAGE)?;
    let parameters = ["-v", "/proc/sys/net:/host/proc/sys/net"];
    let folders = [
        &["-v", "/run/flannel:/run/flannel", "-v", "/run/netd:/run/netd", "-v", "/var/lib/netd:/var/lib/netd"][..],
        &["-v", "/etc/netd:/etc/kube-flannel:ro", "-v", "/var/lib/cni:/var/lib/cni:ro"],
        &["-v", "/run/ipvs-proxy:/run/ipvs-proxy:ro"],
    ]
    .concat();
    let netd = ["netd", "--store=local", "--ip-masq", "--iface=eth0", "--healthz-ip=127.0.0.1", "--healthz-port=10248"];
    let start = |name: &str, mounts: &[&str], command: &[&str]| {
        let run = ["run", "-d", "--name", name];
        podman.run(&[&run[..], &CONFINED, &parameters, mounts, &[IMAGE], command].concat())
    };
    start("netd", &folders, &netd)?;
    // What a program writes to standard error, podman writes there as well.
    let log = |name: &str| {
        node.run(&["podman", "--storage-driver=vfs", "logs", name]).map(|log| log.stderr).unwrap_or_default()
    };
    let answers = |url: &str| node.run(&["curl", "-fsS", "--max-time", "5", url]);
    eventually(SOON, || answers("http://127.0.0.1:10248/readyz").map(drop)).with_context(|| log("netd"))?;
    ensure!(node.read("/run/flannel/subnet.env")?.contains("FLANNEL_SUBNET=172.7."));
    node.run(&["ip", "link", "show", "flannel.1"])?;
    eventually(SOON, || {
        let forwards = node.run(&["sysctl", "-n", "net.ipv4.ip_forward"])?.stdout;
        ensure!(forwards.trim() == "1", "the node does not forward: {forwards}");
        Ok(())
    })
    .with_context(|| log("netd"))?;
    let mounts = ["-v", "/run/ipvs-proxy:/run/ipvs-proxy", "-v", "/etc/services.d:/etc/services.d:ro"];
    let proxy =
        ["ipvs-proxy", "--services-dir=/etc/services.d", "--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16"];
    start("ipvs-proxy", &mounts, &proxy)?;
    eventually(SOON, || answers("http://127.0.0.1:10256/readyz").map(drop)).with_context(|| log("ipvs-proxy"))?;
    node.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?;
    eventually(SOON, || {
        let page = answers("http://127.0.0.1:10247/")?.stdout;
        ensure!(page.contains("shop/web") && page.contains("shop/cart-1") && page.contains("172.7.21.9"), "{page}");
        Ok(())
    })
    .with_context(|| log("netd"))?;
    for name in ["netd", "ipvs-proxy"] {
        // The status file follows half a second behind: what /readyz says may not be in it yet.
        let status = eventually(SOON, || podman.exec(name, &[name, "status"]))?;
        ensure!(!status.contains("read-only"), "{status}");
        podman.remove(name)?;
    }
    Ok(())
}

fn containerd_imports_the_image_and_its_init_container_installs_plugin_and_list() -> Result<()> {
    let node = lone_node(NATIVE)?;
    ours::save(&node, IMAGE)?;
    let containerd = Containerd::start(&node)?;
    containerd.ctr(&["images", "import", "--snapshotter=native", ARCHIVE])?;
    node.run(&["sh", "-c", "rm -r /opt/cni/bin/* /etc/cni/net.d"])?;
    node.write("/run/config/cni-conf.json", NATIVE)?;
    let mounts = [
        "type=bind,src=/opt/cni/bin,dst=/host/opt/cni/bin,options=rbind:rw",
        "type=bind,src=/etc/cni,dst=/host/etc/cni,options=rbind:rw",
        "type=bind,src=/run/config,dst=/etc/kube-flannel,options=rbind:ro",
    ];
    let mut run = vec!["run", "--rm", "--read-only", "--snapshotter=native", "--cgroup=", "--runc-binary"];
    run.push(containerd::RUNTIME);
    run.extend(mounts.iter().flat_map(|mount| ["--mount", *mount]));
    run.extend([IMAGE, "install", "netd-cni", "install", "--as", "flannel,portmap"]);
    run.extend(["--conflist", "/etc/kube-flannel/cni-conf.json", "/host/etc/cni/net.d/10-netd.conflist"]);
    run.push("/host/opt/cni/bin");
    containerd.ctr(&run)?;
    ensure!(node.read("/etc/cni/net.d/10-netd.conflist")? == NATIVE, "the list is not there");
    for name in ["netd-cni", "flannel", "portmap"] {
        let about = node.run(&[&format!("/opt/cni/bin/{name}")])?.stderr;
        ensure!(about.contains("CNI plugin"), "{name}: {about}");
    }
    Ok(())
}

fn main() -> ExitCode {
    cni_node::suite(obstacle()).run(lab::tests![
        image_holds_the_three_static_programs_and_nothing_else,
        static_program_resolves_names_in_an_image_without_libraries,
        netd_and_the_proxy_work_with_one_capability_and_a_read_only_root,
        containerd_imports_the_image_and_its_init_container_installs_plugin_and_list,
    ])
}
