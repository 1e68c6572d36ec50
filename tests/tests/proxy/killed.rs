//! SIGKILL before a message to the real kernel, and the start behind it: strace(1) kills the thread that sends it when it enters the call.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Process, eventually};

use super::{Nodes, SERVICES, SOON, WEB_SERVICE, dns, slice};

/// Two lists of Services, of which each has other endpoints, a Service at another address, one that is gone and one that is new.
fn listed(next: bool) -> String {
    let old = WEB_SERVICE.replace("web", if next { "new" } else { "old" });
    let old = old.replace("0.10", if next { "0.12" } else { "0.11" });
    let name = if next { "new" } else { "old" };
    let (web, names, other) = if next {
        (["172.7.21.3", "172.7.22.2"], "172.7.22.3", "172.7.21.2")
    } else {
        (["172.7.21.2", "172.7.21.3"], "172.7.21.2", "172.7.22.3")
    };
    let names = dns(&[names]).replace("0.53", if next { "0.54" } else { "0.53" });
    let other = slice(&[other]).replace("web", name);
    [WEB_SERVICE, &slice(&web), &names, &old, &other].join("\n---\n")
}

/// Starts the proxy behind this command, or alone.
fn launch(node: &Host, mode: &str, before: &[String]) -> Result<Process> {
    let program = lab::bin("ipvs-proxy")?;
    let command = match before.split_first() {
        Some((first, rest)) => node.command(first).args(rest).arg(program),
        None => node.command(program),
    };
    let command = command.arg(format!("--services-dir={SERVICES}")).arg(format!("--proxy-mode={mode}"));
    command.args(["--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"]).start("ipvs-proxy")
}

fn strace(words: &[&str]) -> Vec<String> {
    // With -D the program is our child and strace is its: what ends the program ends both.
    let own = ["strace", "-D", "-f", "-qq", "-s", "0", "-o", "/run/trace"];
    own.iter().chain(words).map(|word| (*word).to_owned()).collect()
}

/// What the kernel holds of the proxy, without the order in which it lists it, and without what tells when it was made: the second in the
/// record's marker and the number of the link.
fn held(node: &Host) -> Result<Vec<String>> {
    let mut text = node.run(&["nft", "-s", "list", "ruleset"])?.stdout;
    if node.run(&["ip", "link", "show", "kube-ipvs0"]).is_ok() {
        text += &node.run(&["ipvsadm", "-Sn"])?.stdout;
        text += &node.run(&["ip", "-o", "-4", "address", "show", "dev", "kube-ipvs0"])?.stdout;
    }
    let timeless = |part: &str| match (part.split_once("whole since "), part.split_once(": kube-ipvs0")) {
        (Some((before, _)), _) => before.to_owned(),
        (_, Some((_, rest))) => rest.trim().to_owned(),
        _ => part.to_owned(),
    };
    let mut parts: Vec<_> = text.split([',', '\n', '{', '}']).map(|part| timeless(part.trim())).collect();
    parts.retain(|part| !part.is_empty());
    parts.sort();
    Ok(parts)
}

/// Starts it on what the kernel has, until all of it is as it should be; what the kernel holds then.
fn whole(node: &Host, mode: &str, before: &[String]) -> Result<Vec<String>> {
    let proxy = launch(node, mode, before)?;
    proxy.wait_for_line(" ready", SOON)?;
    eventually(SOON, || {
        let status: serde_json::Value = serde_json::from_str(&node.read("/run/ipvs-proxy/status.json")?)?;
        ensure!(status["ok"] == true && status["services"] == 3, "{status}");
        Ok(())
    })?;
    // A drain that has come to its end leaves its record a moment later.
    let found = eventually(SOON, || {
        let found = held(node)?;
        ensure!(!found.iter().any(|part| part.contains("since second ")), "{found:?}");
        Ok::<_, anyhow::Error>(found)
    })?;
    ensure!(proxy.terminate(SOON)?.success(), "{}", proxy.log());
    Ok(found)
}

/// Fails with what is there too much, and what is missing.
fn ensure_same(found: &[String], wanted: &[String]) -> Result<()> {
    let without = |all: &[String], others: &[String]| -> Vec<String> {
        all.iter().filter(|part| !others.contains(part)).cloned().collect()
    };
    ensure!(found == wanted, "too much: {:?}, missing: {:?}", without(found, wanted), without(wanted, found));
    Ok(())
}

/// Messages of the thread that sent most, as strace counts them.
fn sent(node: &Host) -> Result<usize> {
    let trace = node.read("/run/trace")?;
    let mut threads = std::collections::BTreeMap::<&str, usize>::new();
    for line in trace.lines().filter(|line| line.contains("sendto(") || line.contains("sendmsg(")) {
        *threads.entry(line.split_whitespace().next().unwrap_or_default()).or_default() += 1;
    }
    threads.into_values().max().context("no message was traced")
}

/// Kills it before single messages of its change from one list of Services to the other, `points` of them at most from the first message to
/// the last; the start behind each makes of what was left exactly what it makes of an empty kernel.
pub(crate) fn killed_at_any_message_it_ends_right_after_the_next_start(mode: &str, points: usize) -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    let clean = || node.command(lab::bin("ipvs-proxy")?).arg("--cleanup").run().map(drop);
    let mut expected = Vec::new();
    for next in [true, false] {
        nodes.publish("all.yaml", &listed(next))?;
        expected.push(whole(node, mode, &[])?);
        clean()?;
    }
    expected.reverse();
    ensure!(expected[0] != expected[1] && expected.iter().all(|rows| rows.len() > 20), "{expected:?}");
    // How many messages a change has.
    whole(node, mode, &[])?;
    nodes.publish("all.yaml", &listed(true))?;
    let found = whole(node, mode, &strace(&["-e", "trace=sendto,sendmsg"]))?;
    ensure_same(&found, &expected[1]).context("the change itself")?;
    let all = sent(node)?;
    let step = all.div_ceil(points).max(1);
    let seed = usize::try_from(RandomState::new().hash_one(0) % 1000)?;
    println!("{mode}: {all} messages, killed before each {step}th from {} on", 1 + seed % step);
    let (mut at, mut killed, mut next) = (1 + seed % step, 0, false);
    while at <= all {
        nodes.publish("all.yaml", &listed(next))?;
        let inject = format!("inject=sendto,sendmsg:signal=KILL:when={at}");
        let proxy = launch(node, mode, &strace(&["-e", "trace=sendto,sendmsg", "-e", &inject]))?;
        let ready = eventually(SOON, || match (proxy.is_running(), proxy.log().contains(" ready")) {
            (false, ready) => Ok(ready),
            (true, true) => Ok(true),
            (true, false) => bail!("before message {at}: {}", proxy.log()),
        })?;
        killed += usize::from(!ready);
        drop(proxy);
        let found = whole(node, mode, &[]).with_context(|| format!("killed before message {at}"))?;
        ensure_same(&found, &expected[usize::from(next)]).with_context(|| format!("killed before message {at}"))?;
        (at, next) = (at + step, !next);
    }
    ensure!(killed >= 3, "it was killed {killed} times only");
    println!("{mode}: killed {killed} times");
    clean()
}
