//! What `configs/kubernetes` renders, by kustomize and by helm: objects that an API server takes as they are written, and that our programs
//! take as they are started by them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod rendered;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use lab::cni::Network;
use lab::{Host, bin};
use rendered::{Objects, compare, containers, list_at, objects, of_kind, overlays, rendered_by, text_at, words};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The paths of what the typed value does not know: types of k8s-openapi pass over a field that they have not.
fn unknown_fields<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Vec<String>> {
    let typed: T = serde_json::from_value(object.clone())?;
    let mut lost = Vec::new();
    compare(object, &serde_json::to_value(typed)?, "", &mut lost);
    Ok(lost)
}

fn unknown_in(object: &Value) -> Result<Vec<String>> {
    match (text_at(object, "/apiVersion")?, text_at(object, "/kind")?) {
        ("v1", "ServiceAccount") => unknown_fields::<ServiceAccount>(object),
        ("v1", "ConfigMap") => unknown_fields::<ConfigMap>(object),
        ("apps/v1", "DaemonSet") => unknown_fields::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => unknown_fields::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => unknown_fields::<ClusterRoleBinding>(object),
        (version, kind) => bail!("nothing here installs {version} {kind}"),
    }
}

fn every_overlay_renders_objects_without_an_unknown_field() -> Result<()> {
    for (overlay, objects) in overlays()? {
        ensure!(!objects.is_empty(), "{overlay} is empty");
        for (key, object) in &objects {
            let unknown = unknown_in(object).with_context(|| format!("{overlay}: {key:?}"))?;
            ensure!(unknown.is_empty(), "{overlay}: {key:?}: {unknown:#?}");
        }
    }
    let (_, mut objects) = overlays()?.remove(0);
    let (_, set) = objects.iter_mut().find(|((kind, _), _)| kind == "DaemonSet").unwrap();
    set["spec"]["template"]["spec"]["hostNetworks"] = json!(true);
    ensure!(unknown_in(set)?.len() == 1, "a field that does not exist is not noticed");
    Ok(())
}

fn references_lead_to_objects_of_the_same_overlay() -> Result<()> {
    for (overlay, objects) in overlays()? {
        let has = |kind: &str, name: &str| objects.contains_key(&(kind.to_owned(), name.to_owned()));
        for (name, set) in of_kind(&objects, "DaemonSet") {
            let pod = &set["spec"]["template"]["spec"];
            ensure!(has("ServiceAccount", text_at(pod, "/serviceAccountName")?), "{overlay}: account of {name}");
            let labels = &set["spec"]["template"]["metadata"]["labels"];
            for (label, value) in set["spec"]["selector"]["matchLabels"].as_object().unwrap() {
                ensure!(&labels[label] == value, "{overlay}: {name} does not select its own Pods");
            }
            let mut volumes = BTreeSet::new();
            for volume in list_at(pod, "/volumes") {
                volumes.insert(text_at(volume, "/name")?);
                if let Some(config) = volume.pointer("/configMap/name") {
                    ensure!(has("ConfigMap", config.as_str().unwrap()), "{overlay}: {name} mounts {config}");
                }
            }
            let mounts = containers(set).flat_map(|container| list_at(container, "/volumeMounts"));
            let mounted: BTreeSet<&str> = mounts.map(|mount| text_at(mount, "/name")).collect::<Result<_>>()?;
            ensure!(mounted == volumes, "{overlay}: {name} has volumes {volumes:?} and mounts {mounted:?}");
        }
        for (name, binding) in of_kind(&objects, "ClusterRoleBinding") {
            ensure!(has("ClusterRole", text_at(binding, "/roleRef/name")?), "{overlay}: role of {name}");
            for subject in list_at(binding, "/subjects") {
                let account = (text_at(subject, "/kind")?, text_at(subject, "/name")?);
                ensure!(has(account.0, account.1), "{overlay}: {name} binds {account:?}");
                let namespace = &objects[&(account.0.to_owned(), account.1.to_owned())]["metadata"]["namespace"];
                ensure!(namespace == &subject["namespace"], "{overlay}: {account:?} is in {namespace}");
            }
        }
        let images: BTreeSet<_> = of_kind(&objects, "DaemonSet")
            .flat_map(|(_, set)| containers(set))
            .map(|one| one["image"].as_str())
            .collect();
        ensure!(images.len() == 1, "{overlay}: {images:?}");
    }
    Ok(())
}

fn containers_may_configure_the_network_and_nothing_else() -> Result<()> {
    for (overlay, objects) in overlays()? {
        for (name, set) in of_kind(&objects, "DaemonSet") {
            let pod = &set["spec"]["template"]["spec"];
            ensure!(
                pod["hostNetwork"] == true && pod["priorityClassName"] == "system-node-critical",
                "{overlay}: {name}"
            );
            ensure!(pod.get("hostPID").is_none() && pod.get("hostIPC").is_none(), "{overlay}: {name}");
            for container in containers(set) {
                let context = &container["securityContext"];
                let is_init = list_at(pod, "/initContainers").any(|one| one == container);
                let capabilities =
                    if is_init { json!({"drop": ["ALL"]}) } else { json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}) };
                let expected = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0,
                    "capabilities": capabilities});
                ensure!(context == &expected, "{overlay}: {name}: {context}");
            }
        }
    }
    Ok(())
}

/// Of the node, netd writes what it must, and reads besides what its page shows: Pods' records, and ipvs-proxy's folder.
fn netd_reads_pods_and_services_of_its_node_and_writes_neither() -> Result<()> {
    let mut seen = 0;
    for (overlay, objects) in overlays()? {
        for (name, set) in of_kind(&objects, "DaemonSet").filter(|(name, _)| *name == "netd") {
            let container = list_at(set, "/spec/template/spec/containers").next().context("its container")?;
            let path_of = |volume: &Value| {
                let mut volumes = list_at(set, "/spec/template/spec/volumes");
                volumes
                    .find(|found| found["name"] == *volume)
                    .and_then(|found| found.pointer("/hostPath/path").cloned())
            };
            let mut mounted = Vec::new();
            for mount in list_at(container, "/volumeMounts") {
                let Some(path) = path_of(&mount["name"]) else { continue };
                let (path, at) = (path.as_str().context("a path")?.to_owned(), text_at(mount, "/mountPath")?);
                ensure!(at == path || at == format!("/host{path}"), "{overlay}: {name}: {path} at {at}");
                mounted.push((path, mount["readOnly"] == true));
            }
            mounted.sort();
            let expected = [
                ("/proc/sys/net", false),
                ("/run/flannel", false),
                ("/run/ipvs-proxy", true),
                ("/run/netd", false),
                ("/var/lib/cni", true),
                ("/var/lib/netd", false),
            ];
            ensure!(mounted == expected.map(|(path, only)| (path.to_owned(), only)), "{overlay}: {mounted:?}");
            seen += 1;
        }
    }
    ensure!(seen > 0, "no overlay has netd");
    Ok(())
}

/// The paths in a word of a command line: `--config=/etc/x`, `/etc/x`.
fn path_in(word: &str) -> Option<&str> {
    word.find('/')
        .map(|place| &word[place..])
        .filter(|path| word.starts_with('/') || word.ends_with(&format!("={path}")))
}

fn paths_of_command_lines_are_mounted_and_files_of_config_maps_are_in_them() -> Result<()> {
    for (overlay, objects) in overlays()? {
        for (name, set) in of_kind(&objects, "DaemonSet") {
            for container in containers(set) {
                for path in words(container).into_iter().filter_map(path_in) {
                    // `--service-cidr=192.168.0.0/16` is none.
                    let Some(path) = Some(path).filter(|path| path.len() > 4) else { continue };
                    let mount = list_at(container, "/volumeMounts")
                        .find(|mount| mount["mountPath"].as_str().is_some_and(|at| Path::new(path).starts_with(at)))
                        .with_context(|| format!("{overlay}: {name}: nothing is mounted for {path}"))?;
                    let volume = list_at(set, "/spec/template/spec/volumes")
                        .find(|volume| volume["name"] == mount["name"])
                        .context("its volume")?;
                    let Some(config) = volume.pointer("/configMap/name").and_then(Value::as_str) else { continue };
                    let file = Path::new(path).file_name().unwrap().to_str().unwrap();
                    let data = &objects[&("ConfigMap".to_owned(), config.to_owned())]["data"];
                    ensure!(data.get(file).is_some(), "{overlay}: {config} has no {file}");
                }
            }
        }
    }
    Ok(())
}

/// Whether `--help` of the program has each of these flags.
fn ensure_known(program: &str, words: &[&str]) -> Result<()> {
    let help = Host::start("help")?.command(bin(program)?).arg("--help").run()?.stdout;
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        let name = flag.split('=').next().unwrap();
        let known = help.split_whitespace().any(|word| word.split(['[', '=']).next() == Some(name));
        ensure!(known, "{program} has no {name}");
    }
    Ok(())
}

/// The configuration that the Pods of an overlay's ipvs-proxy follow, and its ConfigMap's name.
fn followed<'a>(objects: &'a Objects, set: &'a Value) -> Result<(&'a str, &'a str)> {
    let mut maps = list_at(set, "/spec/template/spec/volumes").filter_map(|volume| volume.pointer("/configMap/name"));
    let name = maps.next().and_then(Value::as_str).context("no ConfigMap is mounted")?;
    Ok((name, text_at(&objects[&("ConfigMap".to_owned(), name.to_owned())], "/data/config.yaml")?))
}

/// The port at which a probe asks, by the name that the container gives it.
fn port_of(container: &Value, probe: &str) -> Result<u64> {
    let asked = container.pointer(&format!("/{probe}/httpGet/port")).with_context(|| format!("no {probe}"))?;
    let port = list_at(container, "/ports").find(|port| &port["name"] == asked).context("no port of that name")?;
    ensure!(port["hostPort"] == port["containerPort"], "{port}");
    port["containerPort"].as_u64().context("a number")
}

fn probes_ask_where_the_programs_answer() -> Result<()> {
    for (overlay, objects) in overlays()? {
        for (name, set) in of_kind(&objects, "DaemonSet") {
            let container = &set["spec"]["template"]["spec"]["containers"][0];
            let place = match name {
                // The default address of its metrics, where the pages about health are as well.
                "netd" => Host::start("help")?.command(bin("netd")?).arg("--help").run()?.stdout,
                _ => followed(&objects, set)?.1.to_owned(),
            };
            for (probe, page) in
                [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
            {
                let port = port_of(container, probe).with_context(|| format!("{overlay}: {name}"))?;
                let written = if name == "netd" {
                    format!("127.0.0.1:{port}]")
                } else {
                    format!("healthzBindAddress: 0.0.0.0:{port}")
                };
                ensure!(place.contains(&written), "{overlay}: {name} does not answer at {port}");
                let at = &container[probe]["httpGet"];
                ensure!(at["path"] == page && at["host"] == "127.0.0.1", "{overlay}: {name}: {at}");
            }
        }
    }
    Ok(())
}

/// A DaemonSet is rolled node by node: until a Pod's turn comes it follows its ConfigMap, which another overlay may have applied meanwhile.
fn pods_of_one_overlay_keep_their_ports_while_those_of_another_come() -> Result<()> {
    let mut ports = BTreeMap::<String, BTreeSet<String>>::new();
    for (_, objects) in overlays()? {
        for (_, set) in of_kind(&objects, "DaemonSet").filter(|(name, _)| *name == "ipvs-proxy") {
            let (name, text) = followed(&objects, set)?;
            let own: Vec<_> = text.lines().filter(|line| line.contains("BindAddress")).collect();
            ports.entry(name.to_owned()).or_default().insert(own.join(", "));
        }
    }
    ensure!(ports.len() == 2 && ports.values().all(|own| own.len() == 1), "{ports:#?}");
    Ok(())
}

fn programs_take_their_command_lines_and_files() -> Result<()> {
    for (overlay, objects) in overlays()? {
        let host = Host::start("node")?;
        for (_, map) in of_kind(&objects, "ConfigMap") {
            for (file, text) in map["data"].as_object().unwrap() {
                host.write(format!("/etc/config/{file}"), text.as_str().unwrap())?;
            }
        }
        for (name, set) in of_kind(&objects, "DaemonSet") {
            let container = &set["spec"]["template"]["spec"]["containers"][0];
            let line = words(container);
            ensure!(line[0] == name, "{overlay}: {name} starts {}", line[0]);
            ensure_known(name, &line[1..]).with_context(|| overlay.clone())?;
            if name == "netd" {
                let check = ["config", "check", "--store=local", "--net-config-path=/etc/config/net-conf.json"];
                host.command(bin("netd")?).args(check).run().with_context(|| overlay.clone())?;
            } else {
                let (_, network) = followed(&objects, set)?;
                host.write("/etc/config/config.yaml", network)?;
                let check = ["--config=/etc/config/config.yaml", "--write-config-to=/tmp/read.yaml"];
                let kubernetes = [("KUBERNETES_SERVICE_HOST", "10.4.7.10"), ("KUBERNETES_SERVICE_PORT", "6443")];
                let mut command = host.command(bin("ipvs-proxy")?).args(check);
                for (variable, value) in kubernetes {
                    command = command.env(variable, value);
                }
                command.run().with_context(|| overlay.clone())?;
                let read = host.read("/tmp/read.yaml")?;
                let cidr = network.lines().find(|line| line.starts_with("clusterCIDR")).context("a Pod network")?;
                ensure!(read.replace('"', "").contains(cidr), "{overlay}: {read}");
            }
        }
    }
    Ok(())
}

fn init_container_installs_a_list_whose_plugins_are_there() -> Result<()> {
    let mut installed = 0;
    for (overlay, objects) in overlays()? {
        for (_, set) in of_kind(&objects, "DaemonSet") {
            for container in list_at(set, "/spec/template/spec/initContainers") {
                let host = Host::start("node")?;
                let list = text_at(&objects[&("ConfigMap".to_owned(), "netd".to_owned())], "/data/cni-conf.json")?;
                host.write("/etc/kube-flannel/cni-conf.json", list)?;
                // A machine's own folders are some, /host is none of them.
                host.run(&["mkdir", "-p", "/run/host/opt/cni/bin", "/run/host/etc/cni/net.d"])?;
                let line: Vec<_> = words(container).iter().map(|word| word.replace("/host/", "/run/host/")).collect();
                ensure!(line[0] == "netd-cni", "{overlay}: {line:?}");
                host.command(bin("netd-cni")?).args(&line[1..]).run().with_context(|| overlay.clone())?;
                let files = host.run(&["ls", "/run/host/etc/cni/net.d"])?.stdout;
                let name = files.trim();
                ensure!(name == if overlay == "from-flannel" { "10-flannel.conflist" } else { "10-netd.conflist" });
                let text = host.read(format!("/run/host/etc/cni/net.d/{name}"))?;
                Network::parse(&text).with_context(|| overlay.clone())?;
                for plugin in list_at(&serde_json::from_str(&text)?, "/plugins") {
                    let kind = text_at(plugin, "/type")?;
                    ensure!(
                        host.path(format!("/run/host/opt/cni/bin/{kind}")).is_file(),
                        "{overlay}: no plugin {kind}"
                    );
                }
                installed += 1;
            }
        }
    }
    ensure!(installed > 0, "no overlay has an init container");
    Ok(())
}

/// With net-conf.json as the value that it is: helm and the base order its members differently.
fn with_values(mut objects: Objects) -> Result<Objects> {
    for object in objects.values_mut() {
        if let Some(text) = object.pointer_mut("/data/net-conf.json") {
            *text = serde_json::from_str(text.as_str().unwrap())?;
        }
    }
    Ok(objects)
}

fn chart_renders_the_objects_of_the_base() -> Result<()> {
    let overlays: BTreeMap<String, Objects> = overlays()?.into_iter().collect();
    for (overlay, settings) in [("both", ""), ("netd", "proxy.enabled=false"), ("ipvs-proxy", "flannel.enabled=false")]
    {
        let set = ["--set", settings];
        let rendered = rendered_by(
            "helm",
            &[&["template", "netd", "chart"][..], if settings.is_empty() { &[] } else { &set }].concat(),
        )?;
        let (chart, base) = (with_values(objects(&rendered)?)?, with_values(overlays[overlay].clone())?);
        ensure!(chart.keys().eq(base.keys()), "{overlay}: {:?} and {:?}", chart.keys(), base.keys());
        for (key, object) in &base {
            ensure!(&chart[key] == object, "{overlay}: {key:?}\nof the chart: {}\nof the base:  {object}", chart[key]);
        }
    }
    Ok(())
}

fn values_of_the_chart_that_are_flannels_reach_the_networks_configuration() -> Result<()> {
    let host = Host::start("node")?;
    let conf = |settings: &str| -> Result<Value> {
        let rendered = objects(&rendered_by("helm", &["template", "netd", "chart", "--set", settings])?)?;
        for object in rendered.values() {
            ensure!(unknown_in(object)?.is_empty(), "{settings}: {object}");
        }
        let text = text_at(&rendered[&("ConfigMap".to_owned(), "netd".to_owned())], "/data/net-conf.json")?;
        host.write("/etc/config/net-conf.json", text)?;
        let check = ["config", "check", "--store=local", "--net-config-path=/etc/config/net-conf.json"];
        host.command(bin("netd")?).args(check).run().with_context(|| settings.to_owned())?;
        Ok(serde_json::from_str(text)?)
    };
    let vxlan = conf(
        "podCidr=172.7.0.0/16,flannel.vni=7,flannel.backendPort=4789,flannel.directRouting=true,flannel.mtu=1400",
    )?;
    let backend = json!({"Type": "vxlan", "VNI": 7, "Port": 4789, "DirectRouting": true, "MTU": 1400});
    ensure!(vxlan == json!({"Network": "172.7.0.0/16", "Backend": backend}), "{vxlan}");
    let wireguard = conf(
        "podCidrv6=fd00:172:7::/48,flannel.backend=wireguard,flannel.backendPort=51820,flannel.backendPortv6=51821,\
         flannel.keepaliveInterval=25,flannel.tunnelMode=separate",
    )?;
    let backend = json!({"Type": "wireguard", "ListenPort": 51820, "ListenPortV6": 51821, "PersistentKeepaliveInterval": 25,
        "Mode": "separate"});
    let networks =
        json!({"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:172:7::/48", "Backend": backend});
    ensure!(wireguard == networks, "{wireguard}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[]).with_kubernetes_tools().run(lab::tests![
        every_overlay_renders_objects_without_an_unknown_field,
        references_lead_to_objects_of_the_same_overlay,
        containers_may_configure_the_network_and_nothing_else,
        netd_reads_pods_and_services_of_its_node_and_writes_neither,
        paths_of_command_lines_are_mounted_and_files_of_config_maps_are_in_them,
        probes_ask_where_the_programs_answer,
        pods_of_one_overlay_keep_their_ports_while_those_of_another_come,
        programs_take_their_command_lines_and_files,
        init_container_installs_a_list_whose_plugins_are_there,
        chart_renders_the_objects_of_the_base,
        values_of_the_chart_that_are_flannels_reach_the_networks_configuration,
    ])
}
