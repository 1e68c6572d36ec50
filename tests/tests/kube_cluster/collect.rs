//! What kubelet 1.20 leaves for up to a minute: the objects of Pods that have ended.
//!
//! It removes a Pod from the API when its sandbox is gone, and a sandbox that ended together with the last container is not gone before the next
//! collection of garbage, of which there is one a minute.
//!
//! Invariant: a Pod is removed only when it was to be deleted and none of its containers runs, and that for a second.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::kubernetes::Client;
use serde_json::{Value, json};

/// Between two looks; a Pod must have ended in both.
const PERIOD: Duration = Duration::from_secs(1);

/// Removes such Pods until it ends.
pub(super) struct Collector {
    _end: Sender<()>,
}

impl Collector {
    pub(super) fn start(client: Client) -> Result<Self> {
        let (end, on_end) = mpsc::channel();
        thread::Builder::new().spawn(move || collect(&client, &on_end)).context("start a thread")?;
        Ok(Self { _end: end })
    }
}

fn collect(client: &Client, on_end: &Receiver<()>) {
    let mut ended = BTreeSet::new();
    while on_end.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        // A server that is away, or has removed it meanwhile, is asked again.
        let Ok(answer) = client.ask("GET", "/api/v1/pods", None) else { continue };
        let now: BTreeSet<_> = answer.body["items"].as_array().into_iter().flatten().filter_map(has_ended).collect();
        for (path, uid) in now.intersection(&ended) {
            let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "preconditions": {"uid": uid}});
            drop(client.ask("DELETE", path, Some(("application/json", &at_once))));
        }
        ended = now;
    }
}

/// Path and UID of a Pod that was to be deleted and none of whose containers runs. One that is removed already is told as one that is being made.
fn has_ended(pod: &Value) -> Option<(String, String)> {
    let (metadata, states) = (&pod["metadata"], pod["status"]["containerStatuses"].as_array()?);
    let is_so = metadata["deletionTimestamp"].is_string()
        && !states.is_empty()
        && states.iter().all(|state| !state["state"]["running"].is_object());
    let text = |field: &str| metadata[field].as_str();
    let path = format!("/api/v1/namespaces/{}/pods/{}", text("namespace")?, text("name")?);
    is_so.then_some((path, text("uid")?.to_owned()))
}
