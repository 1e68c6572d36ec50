//! The lab's container runtime: the calls it makes are libcni's, and the reference plugins of Debian work under it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::Host;
use lab::cni::{Attachment, Client, Network, PluginError, Runtime};
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

fn failed_add_is_undone_and_its_first_error_reported() -> Result<()> {
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
    runtime.gc(&runtime.network()?, Some(std::slice::from_ref(kept.attachment())))?;
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

/// A list of the two recorders in another version or with further keys.
fn relisted(runtime: &Runtime, keys: Value) -> Result<Network> {
    let mut list = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "first"}, {"type": "second"}]});
    list.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    runtime.parse(&list.to_string())
}

fn check_is_gated_by_version_and_flag_and_goes_without_a_cached_result() -> Result<()> {
    let runtime = recorded("nothing")?;
    let attachment = Attachment::of(&runtime.host().pod("web")?);
    let early = relisted(&runtime, json!({"cniVersion": "0.3.1"}))?;
    let error = runtime.check(&early, &attachment).unwrap_err().to_string();
    ensure!(error == "configuration version \"0.3.1\" does not support the CHECK command", "{error}");
    runtime.check(&relisted(&runtime, json!({"disableCheck": "true"}))?, &attachment)?;
    ensure!(!runtime.host().path("/run/calls").exists(), "a plugin was asked");
    runtime.check(&runtime.network()?, &attachment)?;
    let calls = calls(&runtime)?;
    ensure!(order(&calls) == ["first CHECK", "second CHECK"] && calls[0]["stdin"].get("prevResult").is_none());
    Ok(())
}

fn early_versions_delete_without_the_previous_result() -> Result<()> {
    let runtime = recorded("nothing")?;
    let sandbox = runtime.run_pod("web")?;
    runtime.del(&relisted(&runtime, json!({"cniVersion": "0.3.1"}))?, sandbox.attachment())?;
    let calls = calls(&runtime)?;
    ensure!(order(&calls)[2..] == ["second DEL", "first DEL"] && calls[2]["stdin"].get("prevResult").is_none());
    ensure!(runtime.cached(&runtime.network()?).is_empty(), "the cache still knows it");
    Ok(())
}

fn gc_names_nothing_without_a_list_and_does_nothing_without_a_cache() -> Result<()> {
    let runtime = recorded("nothing")?;
    let network = runtime.network()?;
    runtime.gc(&network, None)?;
    ensure!(!runtime.host().path("/run/calls").exists(), "libcni gives up when there is no cache folder");
    let sandbox = runtime.run_pod("web")?;
    runtime.gc(&relisted(&runtime, json!({"disableGC": true}))?, None)?;
    ensure!(calls(&runtime)?.len() == 2, "disableGC is not obeyed");
    runtime.gc(&relisted(&runtime, json!({"cniVersion": "1.0.0"}))?, Some(&[sandbox.attachment().clone()]))?;
    ensure!(calls(&runtime)?.len() == 2, "version 1.0.0 has no GC");
    runtime.gc(&network, None)?;
    let calls = calls(&runtime)?;
    ensure!(order(&calls)[2..] == ["second DEL", "first DEL", "first GC", "second GC"], "{calls:#?}");
    let input = calls[4]["stdin"].as_object().unwrap();
    ensure!(!input.keys().any(|key| key.starts_with("cni.dev/")), "{input:?}");
    ensure!(runtime.acting_as(Client::Containerd1).gc(&network, None).is_err(), "libcni 1.1 has no GC");
    Ok(())
}

fn gc_goes_on_after_errors_and_reports_all_of_them() -> Result<()> {
    let runtime = recorded("GC")?;
    let failing = json!({"plugins": [{"type": "first", "fail": "GC"}, {"type": "second", "fail": "GC"}]});
    runtime.run_pod("web")?;
    let error = runtime.gc(&relisted(&runtime, failing)?, Some(&[])).unwrap_err().to_string();
    for plugin in ["first", "second"] {
        ensure!(error.contains(&format!("failed to GC plugin {plugin}: try again later; no lease yet")), "{error}");
    }
    ensure!(order(&calls(&runtime)?)[4..] == ["first GC", "second GC"]);
    Ok(())
}

fn status_stops_at_the_first_failing_plugin_with_its_code() -> Result<()> {
    let runtime = recorded("nothing")?;
    let failing = json!({"plugins": [{"type": "first", "fail": "STATUS"}, {"type": "second"}]});
    let error = runtime.status(&relisted(&runtime, failing)?).unwrap_err();
    ensure!(error.downcast_ref::<PluginError>().is_some_and(|error| error.code == 11), "{error:#}");
    ensure!(error.to_string() == "try again later; no lease yet", "STATUS is not wrapped: {error}");
    runtime.status(&relisted(&runtime, json!({"cniVersion": "1.0.0"}))?)?;
    let calls = calls(&runtime)?;
    ensure!(order(&calls) == ["first STATUS"], "{calls:#?}");
    ensure!(calls[0]["env"].as_array().unwrap()[1..5].iter().all(|value| value == ""), "{calls:#?}");
    Ok(())
}

fn version_is_asked_with_placeholders_and_the_callers_newest_version() -> Result<()> {
    let runtime = recorded("nothing")?;
    for (client, newest) in [(Client::Containerd1, "1.0.0"), (Client::Containerd2, "1.1.0")] {
        // The recorder answers nothing, which is no answer to VERSION.
        ensure!(runtime.clone().acting_as(client).versions("first").is_err());
        let last = calls(&runtime)?.pop().context("no call")?;
        ensure!(last["env"] == json!(["VERSION", "", "dummy", "dummy", "", "dummy"]), "{last}");
        ensure!(last["stdin"] == json!({"cniVersion": newest}), "{last}");
    }
    Ok(())
}

fn cache_file_is_libcnis() -> Result<()> {
    let runtime = recorded("nothing")?;
    let pod = runtime.host().pod("web")?;
    let attachment = Attachment::of(&pod).args("IgnoreUnknown=1;A=b=c").with_container_id("c1");
    let list = relisted(&runtime, json!({}))?;
    let result = runtime.add(&list, &attachment)?;
    let file = "/var/lib/cni/results/net-c1-eth0";
    let entry: Value = serde_json::from_str(&runtime.host().read(file)?)?;
    let expected = json!({"kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "net", "netns": "/run/netns/cni-web",
        "cniArgs": [["IgnoreUnknown", "1"], ["A", "b=c"]], "config": entry["config"], "result": result});
    ensure!(entry == expected, "{entry:#}");
    let mode =
        |path: &str| std::fs::metadata(runtime.host().path(path)).map(|found| found.permissions().mode() & 0o777);
    ensure!((mode("/var/lib/cni/results")?, mode(file)?) == (0o700, 0o600));
    ensure!(runtime.cached(&list) == [attachment]);
    Ok(())
}

fn junk_in_the_cache_fails_delete_in_the_old_libcni_and_is_thrown_away_by_the_new() -> Result<()> {
    let runtime = recorded("nothing")?;
    let sandbox = runtime.run_pod("web")?;
    let file = format!("/var/lib/cni/results/net-{}-eth0", sandbox.attachment().container_id());
    let list = relisted(&runtime, json!({"cniVersion": "1.0.0"}))?;
    runtime.host().write(&file, "{")?;
    let old = runtime.clone().acting_as(Client::Containerd1).del(&list, sandbox.attachment());
    let error = format!("{:#}", old.unwrap_err());
    ensure!(error.contains("failed to get network \"net\" cached result"), "{error}");
    runtime.del(&list, sandbox.attachment())?;
    ensure!(order(&calls(&runtime)?)[2..] == ["second DEL", "first DEL"]);
    ensure!(!runtime.host().path(&file).exists());
    Ok(())
}

fn failures_are_reported_in_libcnis_words() -> Result<()> {
    let runtime = recorded("nothing")?;
    let pod = runtime.host().pod("web")?;
    for (script, words) in [
        ("exit 3", "plugin type=\"odd\" failed (add): netplugin failed with no error message: exit status: 3"),
        ("echo oops >&2; exit 1", "netplugin failed: \"oops\\n\": exit status: 1"),
        ("echo oops; exit 1", "netplugin failed but error parsing its diagnostic message \"oops\\n\""),
        ("echo '{\"code\":7,\"msg\":\"m\"}'; exit 1", "plugin type=\"odd\" failed (add): m"),
        ("echo '{}{}'", "failed to unmarshal raw result"),
        ("echo '{\"cniVersion\":\"9.9.9\"}'", "unsupported CNI result version \"9.9.9\""),
    ] {
        runtime.host().write("/opt/cni/bin/odd", format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(runtime.host().path("/opt/cni/bin/odd"), std::fs::Permissions::from_mode(0o755))?;
        let list = relisted(&runtime, json!({"plugins": [{"type": "odd"}]}))?;
        let error = format!("{:#}", runtime.add(&list, &Attachment::of(&pod)).unwrap_err());
        ensure!(error.contains(words), "{script}: {error}");
    }
    for (plugin, words) in
        [("absent", "failed to find plugin \"absent\" in path [/opt/cni/bin]"), ("../x", "invalid plugin name: ../x")]
    {
        let list = relisted(&runtime, json!({"plugins": [{"type": plugin}]}))?;
        let error = format!("{:#}", runtime.add(&list, &Attachment::of(&pod)).unwrap_err());
        ensure!(error.contains(words), "{error}");
    }
    Ok(())
}

fn plugin_is_the_first_regular_file_of_its_name() -> Result<()> {
    let runtime = recorded("nothing")?.path(&["/opt/cni/bin", "/usr/lib/cni"]);
    let (host, list) = (runtime.host(), relisted(&runtime, json!({"plugins": [{"type": "loopback"}]}))?);
    std::fs::create_dir(host.path("/opt/cni/bin/loopback"))?;
    let pod = host.pod("web")?;
    // The folder is passed over; Debian's plugin, which does not speak 1.1.0, is what answers.
    let error = format!("{:#}", runtime.add(&list, &Attachment::of(&pod).ifname("lo")).unwrap_err());
    ensure!(error.contains("incompatible CNI versions"), "{error}");
    Ok(())
}

fn crio_checks_after_every_add_and_deletes_with_the_list_of_the_add() -> Result<()> {
    let runtime = recorded("nothing")?.acting_as(Client::CriO);
    let complaint = format!("{:#}", runtime.network().unwrap_err());
    ensure!(complaint.contains("VERSION"), "CRI-O takes a network whose plugins it cannot ask: {complaint}");
    for plugin in ["first", "second"] {
        let answering = RECORDER.replace(
            "input=$(cat)",
            "[ $CNI_COMMAND != VERSION ] || { echo '{\"supportedVersions\":[\"1.1.0\"]}'; exit; }\ninput=$(cat)",
        );
        runtime.host().write(format!("/opt/cni/bin/{plugin}"), answering)?;
    }
    std::fs::remove_file(runtime.host().path("/run/calls"))?;
    let sandbox = runtime.run_pod("web")?;
    let changed = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "first"}]});
    runtime.configure("10-net.conflist", &changed.to_string())?;
    sandbox.stop()?;
    let calls = calls(&runtime)?;
    let expected = ["first ADD", "second ADD", "first CHECK", "second CHECK", "second DEL", "first DEL"];
    ensure!(order(&calls) == expected, "{:?}", order(&calls));
    Ok(())
}

fn containerd_attaches_loopback_beside_the_network_and_deletes_with_the_list_it_has_now() -> Result<()> {
    let runtime = recorded("nothing")?.acting_as(Client::Containerd2);
    std::fs::copy(runtime.host().path("/opt/cni/bin/first"), runtime.host().path("/opt/cni/bin/loopback"))?;
    let loopback = RECORDER.replace("1.1.0\\\",\\\"ips", "0.3.1\\\",\\\"ips");
    ensure!(loopback != RECORDER);
    runtime.host().write("/opt/cni/bin/loopback", loopback)?;
    let sandbox = runtime.run_pod("web")?;
    let changed = json!({"name": "net", "cniVersion": "1.1.0", "plugins": [{"type": "first"}]});
    runtime.configure("10-net.conflist", &changed.to_string())?;
    sandbox.stop()?;
    let calls = calls(&runtime)?;
    let expected = ["loopback ADD", "first ADD", "second ADD", "loopback DEL", "first DEL"];
    ensure!(order(&calls) == expected, "{:?}", order(&calls));
    ensure!(calls[0]["env"][3] == "lo" && calls[0]["stdin"]["cniVersion"] == "0.3.1" && calls[1]["env"][3] == "eth0");
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
            failed_add_is_undone_and_its_first_error_reported,
            failed_del_keeps_the_cached_result_for_the_next_one,
            gc_deletes_what_is_not_valid_and_names_what_is,
            check_is_gated_by_version_and_flag_and_goes_without_a_cached_result,
            early_versions_delete_without_the_previous_result,
            gc_names_nothing_without_a_list_and_does_nothing_without_a_cache,
            gc_goes_on_after_errors_and_reports_all_of_them,
            status_stops_at_the_first_failing_plugin_with_its_code,
            version_is_asked_with_placeholders_and_the_callers_newest_version,
            cache_file_is_libcnis,
            junk_in_the_cache_fails_delete_in_the_old_libcni_and_is_thrown_away_by_the_new,
            failures_are_reported_in_libcnis_words,
            plugin_is_the_first_regular_file_of_its_name,
            crio_checks_after_every_add_and_deletes_with_the_list_of_the_add,
            containerd_attaches_loopback_beside_the_network_and_deletes_with_the_list_it_has_now,
            reference_plugins_connect_pods_of_one_machine,
        ],
    )
}
