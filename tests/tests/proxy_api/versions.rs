//! Versions of the API's objects: those that are no longer kept, those that begin again from an older state, and those that bookmarks name.
//!
//! Invariant: each test has a server of its own, which others would see compacted, restored or silent.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::kubernetes::{ApiServer, Faults, Release};
use lab::{Process, allowing_for_load, eventually, throughout};
use serde_json::json;

use crate::proxy::{Nodes, SOON};
use crate::{SERVICES, answered_by, in_reach, service, serving, slice, start};

const SLICES: &str = "/apis/discovery.k8s.io/v1beta1/endpointslices?";
/// Longest time between two bookmarks of a server, generous for a busy machine.
const BOOKMARK: Duration = Duration::from_secs(180);

/// A watch that ends sooner is reported.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How often the proxy has listed these objects in pages.
fn listings(faults: &Faults, objects: &str) -> usize {
    let is_so = |target: &str| target.starts_with(objects) && target.contains("limit=") && !target.contains("watch=");
    faults.seen().iter().filter(|seen| is_so(&seen.target)).count()
}

/// The versions from which the proxy has watched these objects, in order.
fn watched_from(faults: &Faults, objects: &str) -> Vec<u64> {
    let version = |target: &str| {
        let behind = target.strip_prefix(objects).filter(|query| query.contains("watch="))?;
        behind.split('&').find_map(|word| word.strip_prefix("resourceVersion=")?.parse().ok())
    };
    faults.seen().iter().filter_map(|seen| version(&seen.target)).collect()
}

/// Lets the watches get old enough: one that ends in its first second without a word is trouble.
fn lasts(proxy: &Process) -> Result<()> {
    throughout(allowing_for_load(2 * AT_ONCE), || {
        ensure!(proxy.is_running(), "the proxy has ended");
        Ok(())
    })
}

/// A server without a cache watches etcd itself, which says of a compacted version what a cache says of one that it has dropped: 410, in the
/// stream. What is listed anew then is written over what is known, of which nothing goes meanwhile: the kernel reports no change of a Service
/// that is as it was.
pub(crate) fn a_version_that_is_gone_is_listed_anew_without_a_moment_of_emptiness() -> Result<()> {
    let nodes = Nodes::start()?;
    let server = ApiServer::start_with(nodes.outside()?, Release::V1_20, &["--watch-cache=false"])?;
    server.put(&service("still", "192.168.0.77"))?;
    let mut still = slice(Release::V1_20, &["172.7.21.3"]);
    still["metadata"] = json!({"name": "still-1", "labels": {"kubernetes.io/service-name": "still"}});
    server.put(&still)?;
    let (faults, proxy) = serving(&nodes, &server)?;
    lasts(&proxy)?;
    let changes = nodes.node()?.command("nft").arg("monitor").start("changes")?;
    let before = [SERVICES, SLICES].map(|objects| listings(&faults, objects));
    faults.pause();
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    server.put(&service("short", "192.168.0.20"))?;
    server.delete("/api/v1/namespaces/default/services/short")?;
    server.compact()?;
    faults.break_connections();
    faults.heal()?;
    answered_by(&nodes, &["172.7.22.3"])?;
    eventually(SOON, || {
        let now = [SERVICES, SLICES].map(|objects| listings(&faults, objects));
        ensure!(
            now.iter().zip(&before).all(|(now, before)| now > before),
            "listed {before:?} times before, now {now:?}"
        );
        Ok(())
    })?;
    changes.wait_for_line("172.7.22.3", SOON)?;
    let said = changes.log();
    ensure!(!said.contains("192.168.0.77") && !said.contains("172.7.21.3"), "{said}");
    ensure!(!proxy.log().contains("out of reach"), "a version that is gone is no outage: {}", proxy.log());
    Ok(())
}

/// etcd is put back to an older state, whose versions are below those that the watches have shown.
pub(crate) fn services_are_those_of_a_state_that_was_restored() -> Result<()> {
    let nodes = Nodes::start()?;
    let mut server = ApiServer::start_with(nodes.outside()?, Release::V1_20, &[])?;
    let (_faults, _proxy) = serving(&nodes, &server)?;
    server.save("early")?;
    server.put(&service("late", "192.168.0.20"))?;
    for pod in ["172.7.21.3", "172.7.22.3"] {
        server.put(&slice(Release::V1_20, &[pod]))?;
        answered_by(&nodes, &[pod])?;
    }
    server.restore("early")?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    in_reach(&nodes)?;
    let tables = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(["tables", "--json"]).run()?.stdout;
    ensure!(!tables.contains("192.168.0.20"), "{tables}");
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])
}

/// Versions pass on Services that are somebody else's, of which nothing comes but the bookmark of each minute.
pub(crate) fn a_watch_that_shows_nothing_goes_on_at_its_last_bookmark() -> Result<()> {
    let nodes = Nodes::start()?;
    let server = ApiServer::start_with(nodes.outside()?, Release::V1_20, &[])?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let proxy = start(&nodes, &faults.kubeconfig())?;
    let first = eventually(SOON, || watched_from(&faults, SERVICES).pop().context("no watch"))?;
    // A server's bookmarks come in the order of its watches: once that of a later one is there, and has had the time to pass, the proxy's has.
    lasts(&proxy)?;
    let mut own =
        server.watch(&format!("/api/v1/services?watch=1&allowWatchBookmarks=true&resourceVersion={first}"))?;
    let mut others = service("others", "192.168.0.20");
    others["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    let newest = server.put(&others)?["metadata"]["resourceVersion"].as_str().context("no version")?.parse::<u64>()?;
    let shown = loop {
        let event = own.next(BOOKMARK)?.context("the watch has ended")?;
        if event["type"] == "BOOKMARK" {
            break event["object"]["metadata"]["resourceVersion"].as_str().context("no version")?.parse::<u64>()?;
        }
    };
    lasts(&proxy)?;
    ensure!(first < newest && newest <= shown, "{first}, then {newest}, and a bookmark of {shown}");
    faults.break_connections();
    eventually(SOON, || match watched_from(&faults, SERVICES)[..] {
        [_, from] if from >= newest => Ok(()),
        ref all => bail!("watched from {all:?}, not from {newest} on"),
    })?;
    ensure!(!proxy.log().contains("out of reach"), "{}", proxy.log());
    Ok(())
}
