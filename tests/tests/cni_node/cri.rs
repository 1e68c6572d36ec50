//! containerd's CRI service, called over its socket as kubelet calls it (k8s.io/cri-api, `runtime.v1.RuntimeService`).
//!
//! Invariant: requests and answers are the service's own messages, as far as a Pod's network needs them; the transport is
//! curl's HTTP/2. The image's server runs as the process of the sandbox, so a Pod needs no container.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use lab::Host;
use prost::Message;

use super::containerd::{Containerd, RUNTIME, printed};
use super::image;

/// CRI keeps its images and containers in this namespace of containerd's.
const NAMESPACE: &str = "k8s.io";

/// The CRI service of a machine's containerd.
pub(crate) struct Cri {
    host: Host,
    containerd: Containerd,
    requests: AtomicU32,
}

/// A mapping as kubelet gives it; protocols are numbered.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PortMapping {
    /// 0 TCP, 1 UDP, 2 SCTP.
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(crate) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(crate) host_port: i32,
    #[prost(string, tag = "4")]
    pub(crate) host_ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<PortMapping>,
    /// A map: on the wire a list of pairs.
    #[prost(message, repeated, tag = "7")]
    annotations: Vec<Pair>,
    #[prost(message, optional, tag = "8")]
    linux: Option<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
struct RunRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// The request of every other verb, and the answer to a start.
#[derive(Clone, PartialEq, Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxNetwork {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<SandboxNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

/// One condition of the runtime, as `NetworkReady`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    pub(crate) is_true: bool,
    #[prost(string, tag = "4")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

impl Cri {
    /// Starts containerd with the service, on images and files of the machine alone.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, image::NAME)
    }

    /// The same with another image for the sandboxes of Pods.
    pub(crate) fn start_with(host: &Host, sandbox: &str) -> Result<Self> {
        let config = format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{RUNTIME}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
"#
        );
        let cri = Self {
            host: host.clone(),
            containerd: Containerd::start_with(host, &config)?,
            requests: AtomicU32::new(0),
        };
        cri.import(image::ARCHIVE)?;
        Ok(cri)
    }

    /// Gives kubelet the images of an archive on the machine.
    pub(crate) fn import(&self, archive: &str) -> Result<()> {
        self.containerd.ctr(&["-n", NAMESPACE, "images", "import", "--snapshotter=native", archive]).map(drop)
    }

    /// The daemon.
    pub(crate) const fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The daemon, to be started again.
    pub(crate) const fn containerd_mut(&mut self) -> &mut Containerd {
        &mut self.containerd
    }

    /// RunPodSandbox; gives the sandbox's ID.
    pub(crate) fn run(&self, name: &str, ports: &[PortMapping], annotations: &[(&str, &str)]) -> Result<String> {
        let text = |text: &str| text.to_owned();
        let config = SandboxConfig {
            metadata: Some(Metadata { name: text(name), uid: format!("uid-{name}"), namespace: text("default") }),
            hostname: text(name),
            port_mappings: ports.to_vec(),
            annotations: annotations.iter().map(|(key, value)| Pair { key: text(key), value: text(value) }).collect(),
            linux: Some(Nothing {}),
        };
        let answer: SandboxId = self.call("RunPodSandbox", &RunRequest { config: Some(config) })?;
        Ok(answer.id)
    }

    /// The address that the service tells of a sandbox.
    pub(crate) fn address(&self, id: &str) -> Result<Ipv4Addr> {
        let answer: SandboxStatusAnswer = self.call("PodSandboxStatus", &SandboxId { id: id.to_owned() })?;
        let network = answer.status.and_then(|status| status.network).context("a sandbox without network")?;
        network.ip.parse().with_context(|| format!("address {:?}", network.ip))
    }

    /// StopPodSandbox: the process ends, then DEL.
    pub(crate) fn stop(&self, id: &str) -> Result<()> {
        self.call::<Nothing>("StopPodSandbox", &SandboxId { id: id.to_owned() }).map(drop)
    }

    /// RemovePodSandbox.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        self.call::<Nothing>("RemovePodSandbox", &SandboxId { id: id.to_owned() }).map(drop)
    }

    /// What kubelet makes a node's readiness of.
    pub(crate) fn network_ready(&self) -> Result<Condition> {
        let answer: StatusAnswer = self.call("Status", &Nothing {})?;
        let mut conditions = answer.status.context("no status")?.conditions.into_iter();
        conditions.find(|condition| condition.kind == "NetworkReady").context("no condition NetworkReady")
    }

    /// What the server at `url` answers to a sandbox.
    pub(crate) fn ask(&self, id: &str, url: &str) -> Result<String> {
        let exec = ["-n", NAMESPACE, "tasks", "exec", "--exec-id", "question", id];
        printed(|| image::answer(&self.containerd.ctr(&[&exec[..], &image::question(url)].concat())?))
    }

    /// One call: a message behind five bytes, flag and length (gRPC over HTTP2, "Length-Prefixed-Message").
    fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        let folder = format!("/run/cri/{}", self.requests.fetch_add(1, Ordering::Relaxed));
        let message = request.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(message.len())?.to_be_bytes());
        bytes.extend(message);
        self.host.write(format!("{folder}/request"), bytes)?;
        let (input, headers, body) =
            (format!("@{folder}/request"), format!("{folder}/headers"), format!("{folder}/answer"));
        let url = format!("http://localhost/runtime.v1.RuntimeService/{method}");
        let transport =
            ["-sS", "--max-time", "60", "--http2-prior-knowledge", "--unix-socket", "/run/containerd/containerd.sock"];
        let kind = ["-H", "content-type: application/grpc", "-H", "te: trailers"];
        let files = ["--data-binary", &input, "-D", &headers, "-o", &body, &url];
        let curl = self.host.command("curl").args(transport).args(kind).args(files);
        curl.limit(std::time::Duration::from_secs(70)).run()?;
        let headers = self.host.read(headers)?;
        if !headers.lines().any(|line| line.trim() == "grpc-status: 0") {
            let complaint = headers.lines().find_map(|line| line.strip_prefix("grpc-message: "));
            bail!("{method}: {}", complaint.unwrap_or(&headers).trim());
        }
        let answer = std::fs::read(self.host.path(body))?;
        ensure!(answer.len() >= 5 && answer[0] == 0, "{method}: no message in the answer");
        A::decode(&answer[5..]).with_context(|| format!("answer of {method}"))
    }
}
