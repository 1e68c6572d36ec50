//! The lab's container runtime: the calls it makes are libcni's, and the reference plugins of Debian work under it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::Host;
use lab::cni::{Attachment, PluginError, Runtime};
use serde_json::{Value, json};

/// A plugin that writes down each call, answers an address that counts the calls, and fails the verb that its `fail` names.
const RECORDER: &str = r#"#!/bin/bash
input=$(cat)
printf '{"env":["%s","%s","%s","%s","%s","%s"],"stdin":%s}\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" \
  "$CNI_ARGS" "$CNI_PATH" "$input" >>/run/calls
if [[ $input == *"\"fail\":\"$CNI_COMMAND\""* ]]; then
  echo '{"cniVersion":"1.1.0","code":11,"msg":"try again later","details":"no lease yet"}'; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then
  echo "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.0.0.$(wc -l </run/calls)/24\"}]}"; fi
"#;

/// A machine with a chain of two recorders, the second one failing the verb `fail`.
fn recorded(fail: &str) -> Result<Runtime> {
    let host = Host::start("a")?;
    host.write("/opt/cni/bin/first", RECORDER)?;
    host.write("/opt/cni/bin/second", RECORDER)?;
    for name in ["first", "second"] {
        let file = host.path(format!("/opt/cni/bin/{name}"));
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?;
    }
    let runtime = Runtime::new(&host);
    let list = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [
        {"type": "first"}, {"type": "second", "fail": fail, "capabilities": {"portMappings": true}}]});
    runtime.configure("10-net.conflist", &list.to_string())?;
    Ok(runtime)
}

fn calls(runtime: &Runtime) -> Result<Vec<Value>> {
    runtime.host().read("/run/calls")?.lines().map(|line| serde_json::from_str(line).context(line.to_owned())).collect()
}

/// `first ADD` for each call, in order.
fn order(calls: &[Value]) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    calls.iter().map(|call| format!("{} {}", word(&call["stdin"]["type"]), word(&call["env"][0]))).collect()
}

fn chain_runs_forwards_and_back_with_the_previous_result() -> Result<()> {
    let runtime = recorded("nothing")?;
    let network = runtime.network()?;
    let pod = runtime.host().pod("web")?;
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let attachment = Attachment::of(&pod).capability("portMappings", ports.clone());
    let result = runtime.add(&network, &attachment)?;
    runtime.check(&network, &attachment)?;
    runtime.del(&network, &attachment)?;
    ensure!(result["ips"][0]["address"] == "10.0.0.2/24", "{result}");
    let calls = calls(&runtime)?;
    ensure!(
        order(&calls) == ["first ADD", "second ADD", "first CHECK", "second CHECK", "second DEL", "first DEL"],
        "{calls:#?}"
    );
    ensure!(calls[0]["stdin"].get("prevResult").is_none() && calls[0]["stdin"].get("runtimeConfig").is_none());
    ensure!(calls[1]["stdin"]["prevResult"]["ips"][0]["address"] == "10.0.0.1/24");
    ensure!(calls[1]["stdin"]["runtimeConfig"]["portMappings"] == ports);
    for call in &calls[2..] {
        ensure!(call["stdin"]["prevResult"] == result, "{call}");
    }
    for call in &calls {
        ensure!(call["stdin"]["name"] == "net" && call["stdin"]["cniVersion"] == "1.1.0");
        let env = call["env"].as_array().unwrap();
        ensure!(env[1].as_str().unwrap().len() == 64 && env[2] == "/run/netns/cni-web" && env[3] == "eth0");
        ensure!(env[4].as_str().unwrap().contains("K8S_POD_NAME=web") && env[5] == "/opt/cni/bin");
    }
    Ok(())
}

fn failed_add_is_undone_and_its_first_error_told() -> Result<()> {
    let runtime = recorded("ADD")?;
    let error = runtime.run_pod("web").unwrap_err();
    let told = error.downcast_ref::<PluginError>().context("not the plugin's error")?;
    ensure!((told.plugin.as_str(), told.code, told.details.as_str()) == ("second", 11, "no lease yet"), "{told}");
    ensure!(order(&calls(&runtime)?) == ["first ADD", "second ADD", "second DEL", "first DEL"]);
    Ok(())
}

fn failed_del_keeps_the_cached_result_for_the_next_one() -> Result<()> {
    let runtime = recorded("DEL")?;
    let sandbox = runtime.run_pod("web")?;
    let (network, attachment) = (runtime.network()?, sandbox.attachment().clone());
    ensure!(sandbox.stop().is_err());
    ensure!(order(&calls(&runtime)?) == ["first ADD", "second ADD", "second DEL"], "a chain goes on after an error");
    ensure!(runtime.del(&network, &attachment).is_err());
    ensure!(calls(&runtime)?[3]["stdin"]["prevResult"]["ips"][0]["address"] == "10.0.0.2/24");
    Ok(())
}

fn gc_deletes_what_is_not_valid_and_names_what_is() -> Result<()> {
    let runtime = recorded("nothing")?;
    let (kept, stale) = (runtime.run_pod("kept")?, runtime.run_pod("stale")?);
    runtime.gc(&runtime.network()?, std::slice::from_ref(kept.attachment()))?;
    let calls = calls(&runtime)?;
    ensure!(order(&calls)[4..] == ["second DEL", "first DEL", "first GC", "second GC"], "{calls:#?}");
    ensure!(calls[4]["env"][1] == stale.attachment().container_id());
    let valid = json!([{"containerID": kept.attachment().container_id(), "ifname": "eth0"}]);
    ensure!(
        calls[6]["stdin"]["cni.dev/valid-attachments"] == valid && calls[7]["stdin"]["cni.dev/attachments"] == valid
    );
    ensure!(calls[6]["env"][1] == "");
    Ok(())
}

fn reference_plugins_connect_pods_of_one_machine() -> Result<()> {
    let host = Host::start("a")?;
    let runtime = Runtime::new(&host);
    for name in ["bridge", "host-local"] {
        let program = Path::new("/usr/lib/cni").join(name);
        ensure!(program.exists(), "{} is missing: apt-get install containernetworking-plugins", program.display());
        runtime.install(&program, &[name])?;
    }
    let list = json!({"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "172.7.21.0/24"}]]}}]});
    runtime.configure("10-reference.conflist", &list.to_string())?;
    ensure!(runtime.versions("bridge")?.contains(&"1.0.0".to_owned()));
    let (one, two) = (runtime.run_pod("one")?, runtime.run_pod("two")?);
    ensure!(one.address() != two.address());
    one.pod().run(&["ping", "-c1", "-W5", &two.address().to_string()])?;
    one.check()?;
    one.pod().run(&["ip", "address", "flush", "dev", "eth0"])?;
    ensure!(one.check().is_err(), "CHECK did not notice the missing address");
    let address = two.address();
    two.stop()?;
    ensure!(!host.path(format!("/var/lib/cni/networks/reference/{address}")).exists(), "DEL kept the reservation");
    one.stop()
}

fn main() -> ExitCode {
    lab::harness::main(
        &[],
        lab::tests![
            chain_runs_forwards_and_back_with_the_previous_result,
            failed_add_is_undone_and_its_first_error_told,
            failed_del_keeps_the_cached_result_for_the_next_one,
            gc_deletes_what_is_not_valid_and_names_what_is,
            reference_plugins_connect_pods_of_one_machine,
        ],
    )
}
