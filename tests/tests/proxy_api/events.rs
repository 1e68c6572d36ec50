//! Events: what somebody must act on stands beside the Service or the Node that it is about.

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{ApiServer, Fault, Faults, Release};
use lab::{echo, eventually};
use serde_json::{Value, json};

use crate::proxy::{Nodes, SOON};
use crate::{begin, service};

const NODE: &str = "hdss7-21.host.com";

/// Events of the server, as `NAME REASON: MESSAGE` of the objects that they are about.
fn events(server: &ApiServer) -> Result<Vec<(String, Value)>> {
    let listed = server.get("/api/v1/events")?;
    let listed = listed["items"].as_array().context("no items")?.clone();
    let text =
        |event: &Value, pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let named = listed.into_iter().map(|event| {
        let [name, reason, message] = ["/involvedObject/name", "/reason", "/message"].map(|at| text(&event, at));
        (format!("{name} {reason}: {message}"), event)
    });
    Ok(named.collect())
}

/// Waits for an Event that begins with this text.
fn event(server: &ApiServer, text: &str) -> Result<Value> {
    eventually(3 * SOON, || -> Result<Value> {
        let events = events(server)?;
        let texts: Vec<_> = events.iter().map(|(text, _)| text.clone()).collect();
        let found = events.into_iter().find(|(found, _)| found.starts_with(text));
        Ok(found.with_context(|| format!("no {text} among {texts:#?}"))?.1)
    })
}

pub(crate) fn what_somebody_must_act_on_is_an_event_of_the_service_or_the_node() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    let node = nodes.node()?;
    let faults = Faults::start(&server, node)?;
    server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))?;
    // Processes that have the ports of a health check, of the proxy's own one and of a node port.
    let _taken =
        [(30_100, "check"), (10_256, "own"), (30_080, "port")].map(|(port, name)| echo::serve(node, name, port));
    let mut web = service("web", "192.168.0.10");
    web["spec"]["type"] = json!("LoadBalancer");
    web["spec"]["externalTrafficPolicy"] = json!("Local");
    web["spec"]["healthCheckNodePort"] = json!(30_100);
    web["spec"]["ports"][0]["nodePort"] = json!(30_080);
    let uid = server.put(&web)?["metadata"]["uid"].clone();
    // Two Services of one address; the server does not mind.
    for (name, address) in [("one", "192.168.0.11"), ("two", "192.168.0.12")] {
        let mut object = service(name, address);
        object["spec"]["externalIPs"] = json!(["10.4.7.9"]);
        server.put(&object)?;
    }
    // The first tries fail; nothing waits for them.
    faults.inject_times("POST /api/v1/namespaces/default/events", Fault::Answer(503), 2);
    let proxy = begin(&nodes, &faults.kubeconfig())?;
    proxy.wait_for_line("ready", SOON)?;
    for (text, namespace) in [
        (format!("{NODE} Starting: Starting ipvs-proxy."), "default"),
        (
            format!("{NODE} FailedToStartProxierHealthcheck: failed to start proxier healthz on 127.0.0.1:10256: "),
            "default",
        ),
        (
            format!(
                "web FailedToStartServiceHealthcheck: node {NODE} failed to start healthcheck \"default/web\" on port 30100: "
            ),
            "default",
        ),
        ("two AddressAlreadyAllocated: tcp 10.4.7.9:80 belongs to services/default/one, ".to_owned(), "default"),
    ] {
        let event = event(&server, &text)?;
        ensure!(event["metadata"]["namespace"] == namespace && event["source"]["component"] == "ipvs-proxy", "{event}");
        ensure!((event["type"] == "Normal") == text.contains("Starting:"), "{event}");
        let about = &event["involvedObject"];
        let expected = if text.starts_with("web") { &uid } else { &about["uid"] };
        ensure!(about["uid"] == *expected && about["uid"].is_string(), "`kubectl describe` asks by the uid: {event}");
    }
    // A pass reads what was found of the sockets.
    server.put(&service("another", "192.168.0.13"))?;
    event(&server, "web NodePortHeld: a process of this host listens at ")?;
    ensure!(events(&server)?.len() == 5, "each once: {:#?}", events(&server)?);
    // A second start finds the cluster's Events there, as another node would.
    ensure!(proxy.terminate(SOON)?.success());
    let before = faults.seen().len();
    let again = begin(&nodes, &faults.kubeconfig())?;
    eventually(3 * SOON, || {
        let seen = faults.seen();
        let creates: Vec<_> =
            seen[before..].iter().filter(|seen| seen.method == "POST").map(|seen| seen.code).collect();
        let count = |code: u16| creates.iter().filter(|found| **found == code).count();
        // Its own Events are new ones; those of the Services are not.
        ensure!(count(409) >= 2 && count(201) >= 2, "{creates:?}");
        Ok(())
    })?;
    ensure!(!again.log().contains("an Event cannot be created"), "{}", again.log());
    Ok(())
}
