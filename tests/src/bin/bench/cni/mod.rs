//! Pods attached and detached: our plugin under its own name and under flannel's, Debian's plugins, and the floor.
//!
//! Invariant: each chain has a machine of the lab to itself, all machines are alike, and the chains take turns: one after another within
//! a round and in another order in the next, so that noise hits all alike.

mod chain;
mod figures;
mod inside;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use lab::{Host, bin};
use serde::de::DeserializeOwned;

use crate::machine;
use crate::options::Options;
use crate::report::Report;
use crate::samples::Samples;
use chain::{Chain, netns_name};
use figures::Figures;
use inside::{Block, Calls, Job};

/// First word of the command line of the measuring process; its job comes on standard input.
pub(crate) const INSIDE: &str = "inside-cni";

/// How many Pods are attached at a time.
const AT_ONCE: [usize; 2] = [1, 8];
const DEBIAN: &str = "/usr/lib/cni";
const OURS: &str = "/opt/cni/netd";
const FLOOR: &str = "/opt/cni/floor";
/// How many Pods publish a port at most: iptables takes a tenth of a second to take one back.
const PUBLISHING: usize = 50;
/// As many Pods as a node with a /24 has addresses for, but for a few.
const FULL: usize = 250;
/// Time limit of one block, far above what the slowest takes.
const LIMIT: Duration = Duration::from_secs(300);

const SUBNET_FILE: &str =
    "FLANNEL_NETWORK=10.96.0.0/16\nFLANNEL_SUBNET=10.96.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const FLOOR_LIST: &str = r#"{"cniVersion": "1.0.0", "name": "floor", "plugins": [{"type": "cni-floor"}]}"#;
/// What flannel's plugin would hand to bridge for the subnet file above, on a subnet of its own.
const DEBIAN_LIST: &str = r#"{"cniVersion": "1.0.0", "name": "debian", "plugins": [
  {"type": "bridge", "bridge": "cni0", "mtu": 1450, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
   "ipMasq": false, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.97.1.0/24"}]], "routes": [{"dst": "10.97.0.0/16"}]}}
]}"#;
const FLOOR_BRIDGE: &str =
    "link add name floor0 type bridge\nlink set dev floor0 mtu 1450 up\naddress add 10.98.1.1/24 brd + dev floor0\n";

/// The measuring process: reads its job, does it, prints the answer.
pub(crate) fn inside() -> Result<()> {
    let mut job = String::new();
    std::io::stdin().read_to_string(&mut job)?;
    println!("{}", inside::work(&serde_json::from_str(&job).context("the job")?)?);
    Ok(())
}

/// Measures and reports.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    report.section("CNI: ADD and DEL");
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let chains = chains()?;
    let hosts = chains.iter().map(|_| prepare(options.pods.max(FULL))).collect::<Result<Vec<Host>>>()?;
    let lanes: Vec<Lane<'_>> = hosts.iter().zip(chains).map(|(host, chain)| Lane { host, chain }).collect();
    for at_once in AT_ONCE {
        let blocks = in_turns(&lanes, options.pods, at_once, options.rounds, report)?;
        figures::report(report, &titles(&lanes), &summed(&blocks), (options.pods, options.rounds), at_once);
    }
    publishing(&lanes, options, report)?;
    growth(&lanes, options, report)?;
    starts(&lanes, options, report)?;
    calls(&lanes, options, report)
}

/// A chain with the machine that it has to itself.
struct Lane<'a> {
    host: &'a Host,
    chain: Chain,
}

fn titles<'a>(lanes: &'a [Lane<'_>]) -> Vec<&'a str> {
    lanes.iter().map(|lane| lane.chain.title.as_str()).collect()
}

/// ADD and DEL of `pods` Pods by each chain in each round; the blocks of a chain are in the order of rounds.
fn in_turns(
    lanes: &[Lane<'_>],
    pods: usize,
    at_once: usize,
    rounds: usize,
    report: &Report,
) -> Result<Vec<Vec<[Block; 2]>>> {
    let mut blocks: Vec<Vec<[Block; 2]>> = vec![Vec::new(); lanes.len()];
    for round in 0..rounds {
        report.progress(&format!("cni: round {} of {rounds}, {pods} Pods, {at_once} at once", round + 1));
        for index in 0..lanes.len() {
            let index = (index + round) % lanes.len();
            let (Some(Lane { host, chain }), Some(blocks)) = (lanes.get(index), blocks.get_mut(index)) else {
                continue;
            };
            let job = Job::Pods { chain: chain.clone(), pods, at_once };
            blocks.push(order(host, &job).with_context(|| chain.title.clone())?);
        }
    }
    Ok(blocks)
}

fn summed(blocks: &[Vec<[Block; 2]>]) -> Vec<Figures> {
    let sum = |rounds: &Vec<[Block; 2]>| {
        let mut figures = Figures::default();
        rounds.iter().for_each(|blocks| figures.take(blocks.clone()));
        figures
    };
    blocks.iter().map(sum).collect()
}

/// The chains that open host ports, with one for each Pod, beside the floor, which has none.
fn publishing(lanes: &[Lane<'_>], options: &Options, report: &Report) -> Result<()> {
    let publishes = |chain: &Chain| chain.opens_ports() || chain.title.starts_with("floor");
    let chain = |chain: &Chain| if chain.opens_ports() { chain.clone().publishing() } else { chain.clone() };
    let chosen = lanes.iter().filter(|lane| publishes(&lane.chain));
    let lanes: Vec<Lane<'_>> = chosen.map(|lane| Lane { host: lane.host, chain: chain(&lane.chain) }).collect();
    let pods = options.pods.min(PUBLISHING);
    let blocks = in_turns(&lanes, pods, 1, options.rounds, report)?;
    figures::report(report, &titles(&lanes), &summed(&blocks), (pods, options.rounds), 1);
    Ok(())
}

/// Whether ADD takes longer with many Pods on the node.
fn growth(lanes: &[Lane<'_>], options: &Options, report: &Report) -> Result<()> {
    let blocks = in_turns(lanes, FULL, 1, options.rounds.min(3), report)?;
    let adds: Vec<Vec<Samples>> =
        blocks.into_iter().map(|rounds| rounds.into_iter().map(|[add, _]| add.calls).collect()).collect();
    figures::report_growth(report, &titles(lanes), &adds, FULL);
    Ok(())
}

/// Has the measuring process inside the machine do a job.
fn order<T: DeserializeOwned>(host: &Host, job: &Job) -> Result<T> {
    let program = std::env::current_exe().context("find this program's own path")?;
    let output = host.command(program).arg(INSIDE).input(serde_json::to_vec(job)?).limit(LIMIT).run()?;
    serde_json::from_str(&output.stdout).context("the answer of the measuring process")
}

/// A machine with plugins, configuration and one namespace per Pod and one more.
fn prepare(pods: usize) -> Result<Host> {
    let host = Host::start("node")?;
    for (folder, program, name) in [
        (OURS, "netd-cni", "netd-cni"),
        (OURS, "netd-cni", "flannel"),
        (OURS, "netd-cni", "portmap"),
        (FLOOR, "cni-floor", "cni-floor"),
    ] {
        let folder = host.path(folder);
        std::fs::create_dir_all(&folder)?;
        std::os::unix::fs::symlink(bin(program)?, folder.join(name)).with_context(|| format!("install {name}"))?;
    }
    host.write("/run/flannel/subnet.env", SUBNET_FILE)?;
    std::fs::create_dir_all(host.path("/var/lib/cni/networks/floor"))?;
    host.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    host.command("ip").args(["-batch", "-"]).input(FLOOR_BRIDGE).run()?;
    let namespaces: String = (0..=pods).map(|pod| format!("netns add {}\n", netns_name(pod))).collect();
    host.command("ip").args(["-batch", "-"]).input(namespaces).run().context("make the Pods' namespaces")?;
    Ok(host)
}

fn chains() -> Result<Vec<Chain>> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/cni");
    let read = |file: &str| std::fs::read_to_string(configs.join(file)).with_context(|| file.to_owned());
    let with_portmap = DEBIAN_LIST
        .trim_end()
        .strip_suffix("]}")
        .map(|list| format!(r#"{list}, {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#));
    let with_portmap = with_portmap.ok_or_else(|| anyhow!("Debian's list has another end"))?;
    Ok(vec![
        Chain::parse("floor (netlink and files only)", FLOOR, "floor0", FLOOR_LIST)?,
        Chain::parse("netd-cni", OURS, "cbr0", &read("10-netd.conflist")?)?,
        Chain::parse("netd-cni as flannel, portmap", OURS, "cni0", &read("10-flannel.conflist")?)?,
        Chain::parse("Debian bridge, host-local", DEBIAN, "cni0", DEBIAN_LIST)?,
        Chain::parse("Debian bridge, host-local, portmap", DEBIAN, "cni0", &with_portmap)?,
    ])
}

/// What the bare start of a program costs, and a STATUS, which should cost little more.
fn starts(lanes: &[Lane<'_>], options: &Options, report: &Report) -> Result<()> {
    let Lane { host, chain } = lanes.get(1).context("no machine of our own")?;
    let mut programs = [
        format!("{FLOOR}/cni-floor"),
        format!("{OURS}/netd-cni"),
        format!("{DEBIAN}/bridge"),
        format!("{DEBIAN}/host-local"),
        format!("{DEBIAN}/portmap"),
    ]
    .to_vec();
    let job = Job::Starts { programs: programs.clone(), chain: chain.clone(), count: options.pods };
    let samples: Vec<Samples> = order(host, &job)?;
    programs.push("netd-cni STATUS".to_owned());
    figures::report_starts(report, &programs, &samples);
    Ok(())
}

fn calls(lanes: &[Lane<'_>], options: &Options, report: &Report) -> Result<()> {
    let mut rows = Vec::new();
    for Lane { host, chain } in lanes {
        let counted: [Calls; 2] = order(host, &Job::Calls { chain: chain.clone(), pod: options.pods })?;
        rows.push((chain.title.as_str(), counted));
    }
    figures::report_calls(report, &rows);
    Ok(())
}
