//! Pods of a rendered cluster: their images, and who answers whom.
//!
//! Invariant: nothing is fetched; images have the names that were rendered, and the objects are those that were rendered.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command as Program;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::RenderedCluster;
use crate::deadline::eventually;
use crate::host::Host;
use crate::pod::Pod;

/// The Service that is asked, by its address and by its name.
pub const VIP: &str = "192.168.0.80";
/// Its name in the DNS.
pub const NAME: &str = "web.default.svc.cluster.local";
/// Four Pods that say who asked them, and their Service.
const WEB: &str = r#"{"apiVersion":"v1","kind":"List","items":[
{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":4,"selector":{"matchLabels":{"app":"web"}},
 "template":{"metadata":{"labels":{"app":"web"}},"spec":{"terminationGracePeriodSeconds":2,
  "topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"web"}}}],
  "containers":[{"name":"web","image":"docker.io/library/web:lab","imagePullPolicy":"Never","ports":[{"containerPort":80}]}]}}}},
{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"192.168.0.80","selector":{"app":"web"},"ports":[{"port":80}]}}]}"#;
/// Until Pods run on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// What containerd and its images are kept out of on a machine of the lab.
const RUNTIME: &str = "/usr/local/bin/crun-without-cgroups";

/// A Pod that runs.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// The host that it is on.
    pub host: String,
    /// Its address.
    pub address: IpAddr,
}

/// Lets containerd and the kubelet run containers where nobody may lower what the kernel's OOM killer goes by, and control groups have no
/// controllers: what was rendered into `root` with what only the lab needs, in the folders that belong to it.
pub(super) fn allow_containers(host: &Host, root: &Path) -> Result<()> {
    const TABLE: &str = "[plugins.\"io.containerd.grpc.v1.cri\"]\n";
    let read = |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
    let unit = read("etc/systemd/system/kubelet.service")?;
    let command = unit.split("ExecStart=").nth(1).and_then(|rest| rest.split("\nRestart=").next());
    let command = command.with_context(|| unit.clone())?;
    // Without a controller no group has cpu.weight, which a kubelet writes into groups that it finds, and ends when it cannot.
    let flags = "--cgroups-per-qos=false --enforce-node-allocatable=";
    let text = format!("[Service]\nExecStart=\nExecStart={command} {flags}\n");
    host.write("/etc/systemd/system/kubelet.service.d/lab.conf", text)?;
    let text = read("etc/containerd/netdadm.toml")?;
    ensure!(text.contains(TABLE) && text.contains("SystemdCgroup = true"), "{text}");
    let text = text.lines().filter(|line| !line.starts_with("imports")).map(|line| format!("{line}\n"));
    let text = text.collect::<String>();
    let text = text.replace(TABLE, &format!("{TABLE}  disable_cgroup = true\n  restrict_oom_score_adj = true\n"));
    let text = text.replace("SystemdCgroup = true", &format!("BinaryName = \"{RUNTIME}\""));
    host.write("/etc/containerd/conf.d/lab.toml", text)?;
    host.write(RUNTIME, "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n")?;
    host.run(&["chmod", "755", RUNTIME]).map(drop)
}

impl RenderedCluster {
    /// Gives containerd of every node the images: nobody fetches any here.
    ///
    /// # Errors
    /// When they cannot be made or read.
    pub fn give_images(&self) -> Result<()> {
        let archive = self.folder.path().join("images.tar");
        let node = self.with_role("node").next().context("no node")?;
        let config = self.folder().join(format!("hosts/{node}/root/etc/containerd/netdadm.toml"));
        let (pause, dns) =
            (named(&config, "sandbox_image = ")?, named(&self.folder().join("manifests/20-coredns.yaml"), "image: ")?);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-images");
        let made = Program::new(script).arg(&archive).args([pause, dns]).output().context("cluster-images")?;
        ensure!(made.status.success(), "cluster-images: {}", String::from_utf8_lossy(&made.stderr));
        let bytes = std::fs::read(&archive).context("read the images")?;
        for name in self.with_role("node") {
            let host = self.host(name)?;
            host.write("/run/images.tar", &bytes)?;
            let import = host.command("ctr").args(["-n", "k8s.io", "images", "import", "/run/images.tar"]);
            import.limit(LIMIT).run()?;
            host.run(&["rm", "/run/images.tar"])?;
        }
        Ok(())
    }

    /// Makes the rendered objects, as `kubectl apply -f out/manifests` does.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply_objects(&self) -> Result<()> {
        for entry in ["10-rights.yaml", "20-coredns.yaml", "30-dashboard.yaml"] {
            let text = std::fs::read(self.folder().join("manifests").join(entry)).context("read a manifest")?;
            self.kubectl(&["apply", "--validate=false", "-f", "-"])?.input(text).run()?;
        }
        Ok(())
    }

    /// Makes four Pods with their Service, and waits until all of them run.
    ///
    /// # Errors
    /// When they do not.
    pub fn run_pods(&self) -> Result<Vec<Running>> {
        self.kubectl(&["apply", "--validate=false", "-f", "-"])?.input(WEB).run()?;
        self.pods_run("kube-system", "k8s-app=kube-dns", 2)?;
        self.pods_run("default", "app=web", 4)
    }

    /// Waits until so many Pods of a label are ready.
    ///
    /// # Errors
    /// When they are not in time, with what the API server says of them.
    pub fn pods_run(&self, namespace: &str, label: &str, count: usize) -> Result<Vec<Running>> {
        eventually(LIMIT, || {
            let printed = self.kubectl(&["get", "pods", "-n", namespace, "-l", label, "-o", "json"])?.run()?.stdout;
            let list: Value = serde_json::from_str(&printed)?;
            let items = list.get("items").and_then(Value::as_array);
            let pods: Vec<Running> = items.into_iter().flatten().filter_map(running).collect();
            ensure!(pods.len() == count, "{} of {count} Pods {label} are ready: {pods:?}", pods.len());
            Ok(pods)
        })
    }

    /// What the server at `address` answers to a Pod: the address that asked and the name of the Pod that answered.
    ///
    /// # Errors
    /// When it does not.
    pub fn ask(&self, from: &Running, address: &str) -> Result<String> {
        let url = format!("http://{address}/cgi-bin/who");
        Ok(self
            .in_network(from, "curl", &["-sf", "-m", "5", &url])?
            .trim()
            .trim_start_matches("[::ffff:")
            .replace(']', ""))
    }

    /// The address that the DNS gives to a Pod for a name, asked as the Pod's resolver asks.
    ///
    /// # Errors
    /// When it gives none.
    pub fn resolve(&self, from: &Running, name: &str) -> Result<String> {
        let server = format!("@{}", self.dns()?);
        let answer = self.in_network(from, "dig", &["+short", "+time=2", "+tries=1", &server, name])?;
        ensure!(answer.trim().parse::<IpAddr>().is_ok(), "{name}: {answer:?}");
        Ok(answer.trim().to_owned())
    }

    /// Every Pod's way: to a Pod on another node with its own address seen, to the Service by address and by name. `lost` is a host that is off.
    ///
    /// # Errors
    /// The first that does not answer in time.
    pub fn all_answer(&self, pods: &[Running], lost: Option<&str>) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        let up: Vec<&Running> = pods.iter().filter(|pod| lost != Some(pod.host.as_str())).collect();
        for from in &up {
            if let Some(far) = up.iter().find(|to| to.host != from.host) {
                let answer = eventually(LIMIT, || self.ask(from, &far.address.to_string()))?;
                ensure!(
                    answer == format!("{} {}", from.address, far.name),
                    "{} asked {}: {answer}",
                    from.name,
                    far.name
                );
            }
            let address = eventually(LIMIT, || self.resolve(from, NAME))?;
            ensure!(address == VIP, "{NAME} is {address}");
            // What was lost is out of the Service once its Node is not ready.
            let answers = eventually(LIMIT, || (0..8).map(|_| self.ask(from, VIP)).collect::<Result<Vec<_>>>())?;
            for answer in answers {
                let by = answer.split_whitespace().nth(1).unwrap_or_default();
                ensure!(up.iter().any(|pod| pod.name == by), "{answer:?} is of no Pod");
                *counts.entry(by.to_owned()).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// The network of a Pod that runs.
    ///
    /// # Errors
    /// When its host has none with that address.
    pub fn network(&self, pod: &Running) -> Result<Pod> {
        self.host(&pod.host)?.pod_with_address(&pod.name, pod.address)
    }

    fn in_network(&self, pod: &Running, program: &str, words: &[&str]) -> Result<String> {
        Ok(self.network(pod)?.command(program).args(words).run()?.stdout)
    }

    /// The address of the DNS, as the kubelet gives it to Pods.
    fn dns(&self) -> Result<String> {
        let node = self.with_role("node").next().context("no node")?;
        let config = self.folder().join(format!("hosts/{node}/root/var/lib/kubelet/config.yaml"));
        let text = std::fs::read_to_string(&config).context("read the kubelet's configuration")?;
        let line =
            text.lines().skip_while(|line| *line != "clusterDNS:").nth(1).and_then(|line| line.strip_prefix("- "));
        line.map(str::to_owned).context("the kubelet names no DNS")
    }
}

/// What stands behind `key` in a rendered file.
fn named(path: &Path, key: &str) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let found = text.lines().find_map(|line| line.trim().strip_prefix(key));
    found.map(|value| value.trim_matches('"').to_owned()).with_context(|| format!("no {key} in {}", path.display()))
}

/// A Pod that is ready and not on its way out.
fn running(pod: &Value) -> Option<Running> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let mut conditions = pod.pointer("/status/conditions")?.as_array()?.iter();
    let has = |one: &Value, key: &str, value: &str| one.get(key).and_then(Value::as_str) == Some(value);
    let is_ready = conditions.any(|one| has(one, "type", "Ready") && has(one, "status", "True"));
    let is_going = pod.pointer("/metadata/deletionTimestamp").is_some();
    let address = text("/status/podIP")?.parse().ok()?;
    (is_ready && !is_going).then_some(Running { name: text("/metadata/name")?, host: text("/spec/nodeName")?, address })
}
