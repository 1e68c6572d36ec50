//! `ipvs-proxy` and kube-proxy 1.20.2, both in the mode ipvs, on two machines of one kernel that has IPVS, beside one API server.
//!
//! Invariants: kernel, server and objects are the same; a start counts only when IPVS has every virtual and real server right after it. A
//! change begins when the node's kernel receives its event and ends when a reading of the virtual server shows the new endpoint alone.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lab::kubernetes::Release;
use lab::lab_kernel::{self, Guest};
use lab::{Host, KubeProxy, Need, bin};
use serde_json::json;

use super::changes::EVENT;
use super::services::{NODE, PEER_MOST, patch};
use super::{KUBECONFIG, LIMIT, Stage, objects};
use crate::arrival::Arrivals;
use crate::machine;
use crate::options::Options;
use crate::proxy::ipvs::Ipvs;
use crate::proxy::services::Service;
use crate::proxy::tools;
use crate::report::{Report, ms};
use crate::samples::Samples;

const HEAD: [&str; 6] = ["Services", "what", "first sync", "one endpoint: median", "least–most", "changes"];
/// Longest time until kube-proxy has everything, or one change: minutes among 1,000 Services, and more on a busy machine.
const PEER_LIMIT: Duration = Duration::from_secs(1500);
/// Pause between two readings of one virtual server.
const PAUSE: Duration = Duration::from_micros(500);
/// How often an endpoint is exchanged: each time takes kube-proxy seconds among 1,000 Services.
const TURNS: [usize; 2] = [100, 6];
const REHEARSED: [usize; 2] = [4, 2];

/// Goes on inside the lab kernel when the running one has no IPVS.
pub(crate) fn ensure_lab_kernel() -> Result<()> {
    let guest = Guest { limit: Duration::from_secs(3 * 3600), memory: 3072, ..Guest::default() };
    lab_kernel::ensure(&[Need::IpVs, Need::Dummy, Need::Nftables], guest)
}

/// Measures and reports, up to the number of Services that kube-proxy is measured beside.
pub(crate) fn measure(options: &Options, report: &Report) -> Result<()> {
    let mut rows = Vec::new();
    for &count in options.services.iter().filter(|count| **count <= PEER_MOST) {
        report.progress(&format!("kube, ipvs: {count} Services"));
        rows.extend(series(count, options).with_context(|| format!("{count} Services"))?);
    }
    report.section(&format!(
        "On IPVS: Services of {} endpoints in the API server of Kubernetes 1.20 (milliseconds)",
        options.endpoints
    ));
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    report.table(&HEAD, &rows);
    Ok(())
}

fn series(count: usize, options: &Options) -> Result<[Vec<String>; 2]> {
    let stage = Stage::start(Release::V1_20)?;
    let services = || (0..count).map(|index| Service::new(index, options.endpoints));
    stage.api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))?;
    stage.fill(services().flat_map(|service| objects::service(service, Release::V1_20)))?;
    let turns = if machine::is_rehearsal() { REHEARSED } else { TURNS };
    let (middle, wanted) = (Service::new(count / 2, options.endpoints), (count, count * options.endpoints));
    let row = |what: &str, first: Duration, changes: &Samples| {
        let spread = format!("{}–{}", ms(changes.least()), ms(changes.most()));
        let first = ms(first.as_secs_f64() * 1000.0);
        vec![count.to_string(), what.to_owned(), first, ms(changes.median()), spread, changes.len().to_string()]
    };
    let (node, started) = (stage.node()?, Instant::now());
    let own = node.command(bin("ipvs-proxy")?).args(["--proxy-mode=ipvs", "--cluster-cidr=172.16.0.0/12"]);
    let own = own.arg(format!("--kubeconfig={KUBECONFIG}")).arg(format!("--hostname-override={NODE}"));
    let own = own.start("ipvs-proxy")?;
    own.wait_for_line(" ready", LIMIT)?;
    let first = started.elapsed();
    confirm(node, wanted)?;
    let ours = row("ipvs-proxy", first, &exchange(&stage, node, middle, turns[0])?);
    ensure!(own.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", own.log());
    let (host, started) = (stage.cluster.host("peer")?, Instant::now());
    let _peer = KubeProxy::start_within(host, &stage.api, "ipvs", PEER_LIMIT)?;
    // It says that it has synced when it has some of them only.
    lab::eventually(PEER_LIMIT, || confirm(host, wanted))?;
    let first = started.elapsed();
    Ok([ours, row("kube-proxy 1.20, ipvs", first, &exchange(&stage, host, middle, turns[1])?)])
}

/// Fails when IPVS has not all of these; others may be there as well.
fn confirm(host: &Host, wanted: (usize, usize)) -> Result<()> {
    let rules = tools::saved(host)?;
    let of = |prefix: &str| rules.lines().filter(|line| line.starts_with(prefix) && !line.ends_with("-w 0")).count();
    let found = (of("-A "), of("-a "));
    ensure!(found.0 >= wanted.0 && found.1 >= wanted.1, "{found:?} of {wanted:?} virtual and real servers");
    Ok(())
}

/// An endpoint of the Service is exchanged, and again the first one: the times until IPVS has it.
fn exchange(stage: &Stage, host: &Host, middle: Service, turns: usize) -> Result<Samples> {
    let (ipvs, arrivals, mut times) = (Ipvs::open(host)?, Arrivals::start(host)?, Samples::default());
    for turn in 0..turns {
        let changed = turn % 2 == 0;
        arrivals.discard()?;
        let at = thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&ipvs, middle, changed));
            patch(stage, middle, changed)?;
            waiting.join().map_err(|_| anyhow!("the thread that waits has ended"))?
        })?;
        let arrived = arrivals.first_of(EVENT)?.context("no packet with an event came")?;
        times.push(at.duration_since(arrived)?);
    }
    Ok(times)
}

fn wait(ipvs: &Ipvs, middle: Service, changed: bool) -> Result<SystemTime> {
    let mut wanted = middle.endpoints(changed);
    wanted.sort_unstable();
    let started = Instant::now();
    loop {
        let mut found = ipvs.serving(middle.address())?;
        found.sort_unstable();
        if found == wanted {
            return Ok(SystemTime::now());
        }
        if started.elapsed() > PEER_LIMIT {
            bail!("{} has {found:?} and should have {wanted:?}", middle.address());
        }
        thread::sleep(PAUSE);
    }
}
