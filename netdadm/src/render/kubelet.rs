//! The kubelet: flags where a version has no field for them, its configuration otherwise.
//!
//! Invariant: the Node is called as the certificate says, and has the address that others use; an unknown flag would stop
//! it, so each stands only where its version has it.

use std::fmt::Write as _;

use super::flags::Flags;
use super::tree::Start;
use super::unit::{self, INSTALL, RESTART};
use super::{KUBERNETES, PKI, Place, Tree, containerd, place};
use crate::topology::{Component, Program, Purpose, Setting, Value};

/// Its configuration.
const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// Adds the kubelet of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let file = |name: &str| format!("{PKI}/{name}");
    let access = format!("{KUBERNETES}/kubelet.conf");
    tree.file(CONFIG, config(place));
    let mut restart = vec![CONFIG.to_owned(), access.clone(), file("ca.crt")];
    if !place.since(31) {
        // Later ones read it again.
        restart.push(file("kubelet.crt"));
    }
    let restart: Vec<&str> = restart.iter().map(String::as_str).collect();
    let text = format!(
        "{head}Type=exec\nExecStart={program}{flags}\n{RESTART}\
         # Pods go on while it is away.\nKillMode=process\nOOMScoreAdjust=-999\n{INSTALL}",
        head = unit::head("Kubelet", " containerd.service docker.service netd-cni.service", false),
        program = place.program(Program::Kubernetes, "kubelet"),
        flags = flags(place, &access),
    );
    let url = format!("http://{}/healthz", place.loopback(Purpose::KubeletHealth));
    tree.unit("kubelet.service", text, &restart, Start::waited().until(url, None, 120));
}

fn flags(place: &Place<'_>, access: &str) -> Flags {
    let mut flags = Flags::default();
    flags.set("config", CONFIG);
    flags.set("kubeconfig", access);
    flags.set("hostname-override", place.name());
    flags.set("node-ip", node_ip(place));
    let docker = place.containerd().is_none();
    if !place.since(24) {
        flags.set("network-plugin", "cni");
        flags.set("cni-bin-dir", containerd::PLUGINS);
        flags.set("cni-conf-dir", containerd::NETWORKS);
        if docker {
            flags.set("pod-infra-container-image", containerd::pause(place));
        } else {
            flags.set("container-runtime", "remote");
        }
    }
    if !docker && !place.since(27) {
        flags.set("container-runtime-endpoint", format!("unix://{}", containerd::SOCKET));
    }
    flags.deviate(place.topology, Component::Kubelet);
    flags
}

/// An address of each family, which kubelets take since two families are switched on everywhere.
fn node_ip(place: &Place<'_>) -> String {
    if place.since(21) && place.topology.networks.pods.len() > 1 {
        return place::joined(place.host.addresses.iter().map(|address| address.value));
    }
    place.address.to_string()
}

fn config(place: &Place<'_>) -> String {
    let dns = place.topology.networks.services.iter().filter_map(|network| network.value.nth(super::objects::DNS));
    let dns: Vec<String> = dns.map(|address| format!("- {address}")).collect();
    let mut text = format!(
        "# Rendered by netdadm. A change asks for a restart of kubelet.service; Pods stay.\n\
         apiVersion: kubelet.config.k8s.io/v1beta1\n\
         kind: KubeletConfiguration\n\
         authentication:\n  anonymous:\n    enabled: false\n  webhook:\n    enabled: true\n  \
         x509:\n    clientCAFile: {PKI}/ca.crt\n\
         authorization:\n  mode: Webhook\n\
         tlsCertFile: {PKI}/kubelet.crt\n\
         tlsPrivateKeyFile: {PKI}/kubelet.key\n\
         port: {port}\n\
         readOnlyPort: 0\n\
         healthzBindAddress: 127.0.0.1\n\
         healthzPort: {health}\n\
         clusterDomain: {domain}\n\
         clusterDNS:\n{dns}\n",
        port = place.port(Purpose::Kubelet),
        health = place.port(Purpose::KubeletHealth),
        domain = super::objects::DOMAIN,
        dns = dns.join("\n"),
    );
    if place.containerd().is_some() && place.since(27) {
        // Writing into a text does not fail.
        let _ = writeln!(text, "containerRuntimeEndpoint: unix://{}", containerd::SOCKET);
    }
    let settings = &place.topology.deviations.kubelet;
    if !settings.contains_key("cgroupDriver") {
        text += "cgroupDriver: systemd\n";
    }
    for (name, setting) in settings {
        text += &setting_text(name, setting);
    }
    text
}

fn setting_text(name: &str, setting: &Setting) -> String {
    match setting {
        Setting::Scalar(value) => format!("{name}: {}\n", scalar(value)),
        Setting::Map(map) => {
            let text = |value: &Value| match TEXTS.contains(&name) {
                true => format!("\"{}\"", value.text),
                false => scalar(value),
            };
            let lines: String = map.iter().map(|(key, value)| format!("  {key}: {}\n", text(value))).collect();
            format!("{name}:\n{lines}")
        }
        Setting::List(list) if list.is_empty() => format!("{name}: []\n"),
        Setting::List(list) => {
            let lines: String = list.iter().map(|value| format!("- {}\n", scalar(value))).collect();
            format!("{name}:\n{lines}")
        }
    }
}

/// Maps whose values are texts, numbers and truth values too: a kubelet ends at others (KubeletConfiguration v1beta1).
const TEXTS: [&str; 9] = [
    "cpuManagerPolicyOptions",
    "evictionHard",
    "evictionMinimumReclaim",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "kubeReserved",
    "qosReserved",
    "systemReserved",
    "topologyManagerPolicyOptions",
];

/// Numbers and truth values without quotes as they are, everything else in quotes, which YAML reads as JSON does.
fn scalar(value: &Value) -> String {
    let text = &value.text;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = text.parse::<i64>().is_ok() || text.split_once('.').is_some_and(|(a, b)| digits(a) && digits(b));
    let plain = !value.quoted && (matches!(text.as_str(), "true" | "false") || is_number);
    if plain { text.clone() } else { format!("\"{text}\"") }
}
