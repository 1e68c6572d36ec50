//! The measuring loop; runs as a process of the measured machine, so that a plugin is started as a runtime on the machine starts it.
//!
//! Invariant: a block is measured only when the one before it has left nothing to do: processes that outlive their call (a deletion
//! that goes on in the background) are adopted, waited for and reported, and the bridge has exactly as many ports as it should. A chain
//! whose Pod cannot reach its gateway is not measured at all.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::{Answer, Chain, netns_name, timed};
use crate::machine;
use crate::samples::Samples;
use crate::usage;

/// What to measure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// ADD for all Pods, then DEL for all.
    Pods { chain: Chain, pods: usize, at_once: usize },
    /// VERSION of each program, and STATUS of the chain, in turn.
    Starts { programs: Vec<String>, chain: Chain, count: usize },
    /// One ADD and one DEL under strace.
    Calls { chain: Chain, pod: usize },
}

/// What ADD or DEL of all Pods took.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Block {
    /// Each call.
    pub(crate) calls: Samples,
    /// From the first start to the last end.
    pub(crate) total: Duration,
    /// The same until no process of the block was left.
    pub(crate) settled: Duration,
    /// Time on a processor of all processes of the block.
    pub(crate) processor: Duration,
    /// The machine was busy with something else when the block began.
    pub(crate) busy: bool,
}

/// System calls, executed programs and memory of one verb.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Calls {
    pub(crate) system_calls: u32,
    pub(crate) executions: u32,
    /// The most resident memory of one of the chain's processes, in KiB. Not less than what time(1) has itself.
    pub(crate) most_resident: u32,
}

/// Does the job; the answer as JSON.
pub(crate) fn work(job: &Job) -> Result<String> {
    nix::sys::prctl::set_child_subreaper(true).context("adopt orphans")?;
    Ok(match job {
        Job::Pods { chain, pods, at_once } => serde_json::to_string(&measure(chain, *pods, *at_once)?)?,
        Job::Starts { programs, chain, count } => serde_json::to_string(&starts(programs, chain, *count)?)?,
        Job::Calls { chain, pod } => serde_json::to_string(&calls(chain, *pod)?)?,
    })
}

fn measure(chain: &Chain, pods: usize, at_once: usize) -> Result<[Block; 2]> {
    // One Pod more, unmeasured: the first ever makes the bridge, and files come into the cache.
    let first = chain.add(pods, &[])?;
    reach_gateway(chain, pods, first.result.as_ref())?;
    chain.del(pods, first.result.as_ref(), &[])?;
    reap()?;
    let (added, results) = block(pods, at_once, |pod| chain.add(pod, &[]))?;
    expect_ports(chain, pods)?;
    let result = |pod: usize| results.get(pod).and_then(Option::as_ref);
    let (deleted, _) = block(pods, at_once, |pod| chain.del(pod, result(pod), &[]))?;
    expect_ports(chain, 0)?;
    Ok([added, deleted])
}

/// A chain is measured only when its Pods work.
fn reach_gateway(chain: &Chain, pod: usize, result: Option<&Value>) -> Result<()> {
    let gateway = result.and_then(|result| result.pointer("/ips/0/gateway")?.as_str());
    let gateway = gateway.with_context(|| format!("{}: no gateway in {result:?}", chain.title))?;
    let mut ping = Command::new("ip");
    ping.args(["netns", "exec", &netns_name(pod), "ping", "-c1", "-W2", gateway]);
    timed(ping, b"").with_context(|| format!("{}: the Pod cannot reach {gateway}", chain.title)).map(drop)
}

/// Runs `call` for each Pod, so many at once; the results in the order of the Pods.
fn block(
    pods: usize,
    at_once: usize,
    call: impl Fn(usize) -> Result<Answer> + Sync,
) -> Result<(Block, Vec<Option<Value>>)> {
    let busy = !machine::await_calm();
    let next = AtomicUsize::new(0);
    let (used, started) = (usage::of_children(), Instant::now());
    let worker = || -> Result<Vec<(usize, Answer)>> {
        let mut answers = Vec::new();
        loop {
            let pod = next.fetch_add(1, Ordering::Relaxed);
            if pod >= pods {
                return Ok(answers);
            }
            answers.push((pod, call(pod)?));
        }
    };
    let mut answers = thread::scope(|scope| -> Result<Vec<(usize, Answer)>> {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok(all)
    })?;
    let total = started.elapsed();
    reap()?;
    let settled = started.elapsed();
    answers.sort_by_key(|(pod, _)| *pod);
    let mut calls = Samples::default();
    answers.iter().for_each(|(_, answer)| calls.push(answer.took));
    let processor = usage::of_children().saturating_sub(used);
    Ok((
        Block { calls, total, settled, processor, busy },
        answers.into_iter().map(|(_, answer)| answer.result).collect(),
    ))
}

/// Waits for every process that a call has left behind.
fn reap() -> Result<()> {
    loop {
        match waitpid(Pid::from_raw(-1), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno).context("wait for what the plugins left running"),
        }
    }
}

fn expect_ports(chain: &Chain, expected: usize) -> Result<()> {
    let folder = format!("/sys/class/net/{}/brif", chain.bridge);
    let ports = fs::read_dir(&folder).with_context(|| folder.clone())?.count();
    ensure!(ports == expected, "{}: {} has {ports} ports and should have {expected}", chain.title, chain.bridge);
    Ok(())
}

/// One start of each program after the other, `count` times.
fn starts(programs: &[String], chain: &Chain, count: usize) -> Result<Vec<Samples>> {
    machine::await_calm();
    let mut samples = vec![Samples::default(); programs.len() + 1];
    for _ in 0..count {
        for (program, samples) in programs.iter().zip(&mut samples) {
            let mut command = Command::new(program);
            command.env("CNI_COMMAND", "VERSION");
            samples.push(timed(command, br#"{"cniVersion":"1.0.0"}"#)?.0);
        }
        if let Some(samples) = samples.last_mut() {
            samples.push(chain.status()?);
        }
    }
    Ok(samples)
}

fn calls(chain: &Chain, pod: usize) -> Result<[Calls; 2]> {
    const SUMMARY: &str = "/run/summary";
    let read = || -> Result<String> {
        let text = fs::read_to_string(SUMMARY).context("the summary")?;
        fs::remove_file(SUMMARY)?;
        Ok(text)
    };
    // Appended, because a chain is several executions.
    let pair = |around: &[&str]| -> Result<[String; 2]> {
        let added = chain.add(pod, around)?;
        let add = read()?;
        chain.del(pod, added.result.as_ref(), around)?;
        reap()?;
        Ok([add, read()?])
    };
    let counted = pair(&["strace", "-f", "-c", "-qq", "-A", "-o", SUMMARY])?;
    let sized = pair(&["time", "-a", "-o", SUMMARY, "-f", "%M"])?;
    let mut calls = counted.map(|text| tally(&text));
    for (calls, text) in calls.iter_mut().zip(sized) {
        calls.most_resident = text.lines().filter_map(|line| line.trim().parse().ok()).max().unwrap_or(0);
    }
    Ok(calls)
}

/// Adds up the tables of `strace -c`: columns are share, seconds, microseconds per call, calls, errors (may be empty), name.
fn tally(summary: &str) -> Calls {
    let mut calls = Calls::default();
    for line in summary.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(count) = words.get(3).and_then(|word| word.parse::<u32>().ok()) else { continue };
        match words.last() {
            Some(&"total") => {}
            Some(name) => {
                calls.system_calls += count;
                calls.executions += if *name == "execve" { count } else { 0 };
            }
            None => {}
        }
    }
    calls
}

/// The time of one of `count` equal parts.
pub(crate) fn share(whole: Duration, count: usize) -> Duration {
    u32::try_from(count).ok().and_then(|count| whole.checked_div(count)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_several_executions_add_up_without_their_totals() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60,00    0.000012           1        12           read
 40,00    0.000008           8         1         1 execve
------ ----------- ----------- --------- --------- ----------------
100.00    0.000020           1        13         1 total
";
        assert_eq!(tally(&table.repeat(2)), Calls { system_calls: 26, executions: 2, most_resident: 0 });
    }
}
