//! The same content by the tools that come with the kernel: `nft -f`, and for IPVS `ip -batch` and `ipvsadm --restore`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::Host;

use super::figures::Figures;
use super::{Carrier, LIMIT, LINK, Load, TABLE};

/// What `ipvsadm` lists of `host`.
pub(crate) fn saved(host: &Host) -> Result<String> {
    Ok(host.command("ipvsadm").args(["--save", "--numeric"]).limit(LIMIT).run()?.stdout)
}

/// What `nft` lists of the table.
pub(super) fn table(host: &Host) -> Result<String> {
    Ok(host.command("nft").args(["list", "table", "ip", TABLE]).limit(LIMIT).run()?.stdout)
}

/// Reads what `node` holds and writes it on `tools`.
pub(super) fn fill(node: &Host, tools: &Host, load: Load, figures: &mut Figures) -> Result<()> {
    let wanted = table(node)?;
    let mut sum = timed(tools, "nft", &["-f", "-"], &wanted)?;
    let written = table(tools)?.lines().count();
    ensure!(written == wanted.lines().count(), "nft -f left something out");
    if load.carrier == Carrier::Ipvs {
        let (rules, addresses) = (saved(node)?, addresses(node)?);
        tools.run(&["ip", "link", "add", LINK, "type", "dummy"])?;
        sum += timed(tools, "ip", &["-batch", "-"], &addresses)?;
        sum += timed(tools, "ipvsadm", &["--restore"], &rules)?;
        ensure!(saved(tools)?.lines().count() == rules.lines().count(), "ipvsadm --restore left something out");
        one_by_ipvsadm(tools, load, figures)?;
        // The kernel's estimators walk all counters every two seconds; those of the tools shall not disturb what follows.
        tools.run(&["ipvsadm", "--clear"])?;
    }
    figures.tools.push(sum);
    Ok(())
}

fn timed(host: &Host, program: &str, args: &[&str], input: &str) -> Result<Duration> {
    let command = host.command(program).args(args).input(input).limit(LIMIT);
    let started = Instant::now();
    command.run()?;
    Ok(started.elapsed())
}

/// The virtual addresses as input of `ip -batch`.
fn addresses(node: &Host) -> Result<String> {
    let listed = node.command("ip").args(["-o", "-4", "address", "show", "dev", LINK]).limit(LIMIT).run()?.stdout;
    let addresses = listed.lines().filter_map(|line| line.split_whitespace().nth(3));
    Ok(addresses.map(|address| format!("address add {address} dev {LINK}\n")).collect())
}

/// One endpoint added and one deleted, by one execution of `ipvsadm` each.
fn one_by_ipvsadm(tools: &Host, load: Load, figures: &mut Figures) -> Result<()> {
    let service = load.middle();
    let (address, new) = (service.address().to_string(), service.other_endpoint().to_string());
    let old = service.endpoints(false).first().context("a Service without endpoints")?.to_string();
    let started = Instant::now();
    tools.run(&["ipvsadm", "-a", "-t", &address, "-r", &new, "-m"])?;
    tools.run(&["ipvsadm", "-d", "-t", &address, "-r", &old])?;
    figures.ipvsadm.push(started.elapsed());
    Ok(())
}
