//! The demo: brings up the reference cluster of the design on five machines in namespaces, proves that Pods and Services work
//! with real packets, and prints a report.
//!
//! Invariant: it shows what the three programs do. Exit status 0 means that every check passed; whatever way it ends, nothing
//! stays behind, because machines end with the process that made them.

#![allow(clippy::print_stdout, reason = "a report is its purpose")]

mod proof;
mod report;
mod stage;

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::lab_kernel::{self, Guest};
use lab::{Host, Need};

use report::Report;
use stage::Stage;

/// The backends that can be shown, each with what it needs of the kernel and how an operator would look at it.
const BACKENDS: [(&str, Option<Need>, &[&str]); 4] = [
    (
        "vxlan",
        Some(Need::Vxlan),
        &["ip -d link show flannel.1", "bridge fdb show dev flannel.1", "ip neigh show dev flannel.1"],
    ),
    ("host-gw", None, &[]),
    ("wireguard", Some(Need::WireGuard), &["wg show flannel-wg"]),
    ("ipip", Some(Need::IpIp), &["ip -d link show flannel.ipip"]),
];

struct Options {
    backend: String,
    proxy: Proxy,
    keep: bool,
}

/// The data path of Services that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    /// IPVS, in the lab kernel where this one has none.
    Ipvs,
    /// nftables.
    Nftables,
}

impl Proxy {
    /// kube-proxy's word for it.
    const fn mode(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }

    const fn needs(self) -> &'static [Need] {
        match self {
            Self::Ipvs => &[Need::IpVs, Need::Dummy, Need::Nftables],
            Self::Nftables => &[Need::Nftables],
        }
    }

    /// How an operator would look at it, beside the nft table that both have.
    const fn views(self) -> &'static [&'static str] {
        match self {
            Self::Ipvs => &["ipvsadm -Ln"],
            Self::Nftables => &[],
        }
    }

    /// What `--proxy` says; without it IPVS where the running kernel has it.
    fn of(word: &str) -> Result<Self> {
        match word {
            "ipvs" => Ok(Self::Ipvs),
            "nftables" => Ok(Self::Nftables),
            "" | "auto" if Need::IpVs.check().is_ok() => Ok(Self::Ipvs),
            "" | "auto" => Ok(Self::Nftables),
            other => bail!("PROXY={other:?}: accepted are ipvs, nftables and auto"),
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{}", lab::logs());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}\n{}", lab::logs());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let guest = Guest { terminal: options.keep, limit: Duration::from_secs(600), ..Guest::default() };
    let (_, needed, views) = BACKENDS.iter().find(|(name, ..)| *name == options.backend).context("a known backend")?;
    let needs: Vec<Need> = options.proxy.needs().iter().copied().chain(*needed).collect();
    lab_kernel::ensure(&needs, guest)?;
    let mut report = Report::new();
    println!("kernel: {}", lab_kernel::describe());
    println!("backend: {}", options.backend);
    println!("Services by: {}", options.proxy.mode());
    let stage = Stage::raise(&options.backend, options.proxy, &mut report)?;
    proof::direct(&stage, &mut report)?;
    proof::service(&stage, options.proxy, &mut report)?;
    state(&stage, options.proxy, views, &report)?;
    let passed = report.finish();
    if options.keep {
        keep(&stage)?;
    }
    Ok(passed)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { backend: "vxlan".to_owned(), proxy: Proxy::of("")?, keep: false };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--keep" => options.keep = true,
            "--backend" => options.backend = words.next().unwrap_or_default(),
            "--proxy" => options.proxy = Proxy::of(&words.next().unwrap_or_default())?,
            other => bail!("{other}: known are --backend {}, --proxy ipvs|nftables|auto and --keep", accepted("|")),
        }
    }
    if BACKENDS.iter().all(|(name, ..)| *name != options.backend) {
        bail!("BACKEND={:?}: accepted are {}", options.backend, accepted(", "));
    }
    Ok(options)
}

fn accepted(between: &str) -> String {
    BACKENDS.map(|(name, ..)| name).join(between)
}

/// What the kernel of the first node holds, as an operator would look.
fn state(stage: &Stage, proxy: Proxy, views: &[&str], report: &Report) -> Result<()> {
    let Some(node) = stage.nodes.first() else { return Ok(()) };
    report.step(&format!("what the kernel of {} holds", node.host.name()));
    let common = ["ip route", "nft list table ip netd", "nft list table ip ipvs-proxy"];
    let commands = ["ip -brief address"].iter().chain(views).chain(&common).chain(proxy.views());
    for command in commands {
        show(&node.host, command, report)?;
    }
    Ok(())
}

fn show(host: &Host, command: &str, report: &Report) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    report.text(command, host.run(&words)?.stdout.trim_end());
    Ok(())
}

/// Leaves everything up until the person at the terminal has seen enough.
fn keep(stage: &Stage) -> Result<()> {
    println!("\nthe cluster stays up; enter a machine with:");
    for host in stage.cluster.hosts() {
        println!("  {:<20} nsenter -a -t {}", host.name(), host.pid());
    }
    println!("a Pod's network from within its machine: ip netns exec cni-<Pod> ...");
    if lab_kernel::is_inside() {
        println!("this shell runs in the lab kernel; `exit` ends it and the cluster");
        Command::new("bash").status().context("start a shell")?;
        return Ok(());
    }
    println!("Ctrl-C ends it; enter from another terminal");
    loop {
        std::thread::park();
    }
}
