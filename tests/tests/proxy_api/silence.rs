//! A server that has nothing to say for a while.
//!
//! Invariant: one watch alone is silent, so the question whether the server is there is that watch's.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::eventually;
use lab::kubernetes::{ApiServer, Fault, Release};
use serde_json::json;

use crate::proxy::{Nodes, SOON};
use crate::{answered_by, serving, slice};

/// Between two changes that keep a watch from being silent.
const PERIOD: Duration = Duration::from_secs(3);

/// The question has no answer, and is given up after ten seconds: then the server counts as lost.
pub(crate) fn a_change_does_not_wait_while_a_silent_server_is_asked_whether_it_is_there() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    let node = nodes.node()?.name().to_owned();
    server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))?;
    let (faults, proxy) = serving(&nodes, &server)?;
    faults.inject("/readyz", Fault::Withhold);
    let (mut changed, mut round) = (Instant::now(), 0);
    eventually(3 * SOON, || {
        if changed.elapsed() > PERIOD {
            (changed, round) = (Instant::now(), round + 1);
            let change = json!({"metadata": {"annotations": {"round": round.to_string()}}});
            server.patch("/api/v1/namespaces/default/services/web", &change)?;
            server.patch(&format!("/api/v1/nodes/{node}"), &change)?;
        }
        let is_asked = faults.seen().iter().any(|seen| seen.target.starts_with("/readyz"));
        ensure!(is_asked, "no question after {round} changes");
        Ok(())
    })?;
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    ensure!(!proxy.log().contains("silent, and"), "the change came with the next listing:\n{}", proxy.log());
    Ok(())
}
