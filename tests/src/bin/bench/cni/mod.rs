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
    let hosts = chains.iter().map(|_| prepare(options.pods)).collect::<Result<Vec<Host>>>()?;
    let mut tables: Vec<Vec<Figures>> = AT_ONCE.iter().map(|_| vec![Figures::default(); chains.len()]).collect();
    for round in 0..options.rounds {
        for (at_once, figures) in AT_ONCE.into_iter().zip(&mut tables) {
            report.progress(&format!("cni: round {} of {}, {at_once} at once", round + 1, options.rounds));
            for index in 0..chains.len() {
                let index = (index + round) % chains.len();
                let (Some(chain), Some(host)) = (chains.get(index), hosts.get(index)) else { continue };
                let Some(figures) = figures.get_mut(index) else { continue };
                let job = Job::Pods { chain: chain.clone(), pods: options.pods, at_once };
                let blocks: [Block; 2] = order(host, &job).with_context(|| chain.title.clone())?;
                figures.take(blocks);
            }
        }
    }
    let titles: Vec<&str> = chains.iter().map(|chain| chain.title.as_str()).collect();
    for (at_once, figures) in AT_ONCE.into_iter().zip(&tables) {
        figures::report(report, &titles, figures, options, at_once);
    }
    starts(hosts.first().context("no machine")?, options, report)?;
    calls(&hosts, &chains, options, report)
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

/// What the bare start of a program costs.
fn starts(host: &Host, options: &Options, report: &Report) -> Result<()> {
    let programs = [
        format!("{FLOOR}/cni-floor"),
        format!("{OURS}/netd-cni"),
        format!("{DEBIAN}/bridge"),
        format!("{DEBIAN}/host-local"),
        format!("{DEBIAN}/portmap"),
    ];
    let samples: Vec<Samples> = order(host, &Job::Starts { programs: programs.to_vec(), count: options.pods })?;
    figures::report_starts(report, &programs, &samples);
    Ok(())
}

fn calls(hosts: &[Host], chains: &[Chain], options: &Options, report: &Report) -> Result<()> {
    let mut rows = Vec::new();
    for (host, chain) in hosts.iter().zip(chains) {
        let counted: [Calls; 2] = order(host, &Job::Calls { chain: chain.clone(), pod: options.pods })?;
        rows.push((chain.title.as_str(), counted));
    }
    figures::report_calls(report, &rows);
    Ok(())
}
