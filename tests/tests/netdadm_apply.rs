//! `netdadm apply` on machines that boot: files and units by systemd's D-Bus, undone when they fail, done again after any end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netdadm_host;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Host, Topology, eventually};
use netdadm_host::{Rendered, apply};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const ONE: &str = "network 10.9.0.0/24\nhdss7-12.host.com 10.9.0.1\n";

/// A service that says READY=1 when its configuration is good, and does not start when it is not.
fn unit(name: &str) -> String {
    format!(
        "[Unit]\nDescription={name} of the test\nBefore=other.service\n[Service]\nType=notify\nNotifyAccess=all\nTimeoutStartSec=60\n\
         ExecStart=/bin/sh -c '. /etc/{name}.conf; [ -z \"$BROKEN\" ] || exit 3; [ ! -e \"$SILENT\" ] || sleep infinity; \
         systemd-notify --ready \"--status=$SAYS\"; exec sleep infinity'\n[Install]\nWantedBy=multi-user.target\n"
    )
}

/// Two services with a configuration each.
fn two(host: &Host, one: &str, other: &str) -> Rendered {
    let mut rendered = Rendered::for_host(host);
    for (name, content) in [("one", one), ("other", other)] {
        let (conf, service) = (format!("/etc/{name}.conf"), format!("/etc/systemd/system/{name}.service"));
        rendered.file(&conf, content).file(&service, &unit(name));
        rendered.unit(&format!("{name}.service"), &[&conf, &service]);
    }
    rendered
}

fn property(host: &Host, unit: &str, name: &str) -> Result<String> {
    let words = ["systemctl", "show", unit, "--value", &format!("--property={name}")];
    Ok(host.run(&words)?.stdout.trim().to_owned())
}

/// Whether a unit is in this state.
fn is(host: &Host, unit: &str, state: &str) -> Result<()> {
    let found = property(host, unit, "ActiveState")?;
    ensure!(found == state, "{unit} is {found}");
    Ok(())
}

/// A start of the unit as no other start is.
fn start(host: &Host, unit: &str) -> Result<String> {
    is(host, unit, "active")?;
    property(host, unit, "InvocationID")
}

fn units_start_when_ready_and_only_what_changed_is_restarted() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(ONE)?)?;
    let host = cluster.host("hdss7-12")?;
    let printed = two(host, "SAYS=first", "SAYS=x").on(host)?;
    ensure!(printed.contains("enable   one.service") && printed.contains("start    one.service"), "{printed}");
    ensure!(printed.contains("one.service is ready"), "{printed}");
    ensure!(property(host, "one", "StatusText")? == "first" && property(host, "one", "UnitFileState")? == "enabled");
    let (one, other) = (start(host, "one")?, start(host, "other")?);
    let printed = two(host, "SAYS=first", "SAYS=x").on(host)?;
    ensure!(printed.contains("nothing to do, its 4 files and 2 units are as the folder says"), "{printed}");
    ensure!((start(host, "one")?, start(host, "other")?) == (one.clone(), other.clone()));
    let printed = two(host, "SAYS=second", "SAYS=x").on(host)?;
    ensure!(printed.contains("restart  one.service: /etc/one.conf changes"), "{printed}");
    ensure!(start(host, "one")? != one && start(host, "other")? == other, "{printed}");
    ensure!(property(host, "one", "StatusText")? == "second");
    // What has ended is started; what the folder has no more is stopped and goes.
    host.run(&["systemctl", "kill", "--signal=KILL", "other"])?;
    eventually(SOON, || is(host, "other", "failed"))?;
    let printed = two(host, "SAYS=second", "SAYS=x").on(host)?;
    ensure!(printed.contains("start    other.service: failed (failed), result signal, status 9"), "{printed}");
    let mut less = two(host, "SAYS=second", "SAYS=x");
    less.files.retain(|path, _| !path.contains("other"));
    less.units.pop();
    let printed = less.on(host)?;
    ensure!(printed.contains("other.service is stopped"), "{printed}");
    ensure!(
        property(host, "other", "ActiveState")? == "inactive" && property(host, "other", "LoadState")? == "not-found"
    );
    ensure!(host.read("/etc/other.conf").is_err());
    cluster.reboot(&["hdss7-12"])?;
    eventually(SOON, || start(host, "one"))?;
    ensure!(less.on(host)?.contains("nothing to do"), "after a reboot");
    Ok(())
}

fn what_fails_is_undone_and_what_is_not_for_this_host_is_refused() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(ONE)?)?;
    let host = cluster.host("hdss7-12")?;
    // A new unit that does not come up leaves nothing.
    let output = two(host, "SAYS=first", "BROKEN=1").try_on(host)?;
    ensure!(output.status.code() == Some(1), "{}{}", output.stdout, output.stderr);
    ensure!(output.stderr.contains("start other.service: the job ended with failed"), "{}", output.stderr);
    ensure!(output.stderr.contains("result exit-code, status 3"), "{}", output.stderr);
    ensure!(output.stderr.contains("files and units are as they were before"), "{}", output.stderr);
    for path in [
        "/etc/one.conf",
        "/etc/systemd/system/other.service",
        "/etc/systemd/system/multi-user.target.wants/one.service",
    ] {
        ensure!(!host.path(path).is_symlink() && !host.path(path).exists(), "{path} is left");
    }
    ensure!(property(host, "one", "ActiveState")? == "inactive" && property(host, "one", "LoadState")? == "not-found");
    ensure!(host.run(&["systemctl", "is-system-running"])?.stdout.trim() == "running");
    // One that ran runs again as it did.
    two(host, "SAYS=first", "SAYS=x").on(host)?;
    let other = start(host, "other")?;
    let output = two(host, "BROKEN=1", "SAYS=x").try_on(host)?;
    ensure!(
        output.stdout.contains("one.service runs again with the files from before"),
        "{}{}",
        output.stdout,
        output.stderr
    );
    ensure!(host.read("/etc/one.conf")? == "SAYS=first" && property(host, "one", "StatusText")? == "first");
    ensure!(start(host, "other")? == other && start(host, "one").is_ok());
    ensure!(two(host, "SAYS=first", "SAYS=x").on(host)?.contains("nothing to do"));
    // A job that is done is no unit that lives.
    let mut dying = two(host, "SAYS=first", "SAYS=x");
    dying.file("/etc/systemd/system/dying.service", "[Service]\nExecStart=/bin/sh -c 'exit 7'\n");
    dying.unit("dying.service", &["/etc/systemd/system/dying.service"]);
    let output = dying.try_on(host)?;
    ensure!(
        output.stderr.contains("dying.service was started and did not stay up"),
        "{}{}",
        output.stdout,
        output.stderr
    );
    ensure!(output.stderr.contains("status 7"), "{}", output.stderr);
    // What answers nothing where the manifest says so is not ready.
    let mut deaf = two(host, "SAYS=second", "SAYS=x");
    deaf.with(
        "ready",
        json!({"url": "http://127.0.0.1:9/", "authority": null, "certificate": null, "key": null, "seconds": 2}),
    );
    deaf.with("restart", json!(["/etc/one.conf"]));
    let output = deaf.try_on(host)?;
    ensure!(output.stderr.contains("http://127.0.0.1:9/ does not answer 200 within 2 s"), "{}", output.stderr);
    ensure!(host.read("/etc/one.conf")? == "SAYS=first");
    refusals(host)
}

fn refusals(host: &Host) -> Result<()> {
    let refused = |rendered: &Rendered, said: &str| {
        let output = rendered.try_on(host)?;
        ensure!(output.status.code() == Some(2) && output.stderr.contains(said), "{}{}", output.stdout, output.stderr);
        ensure!(host.read("/etc/one.conf")? == "SAYS=first", "{said}");
        Ok(())
    };
    let mut foreign = two(host, "SAYS=second", "SAYS=x");
    foreign.host = "hdss7-21.host.com".to_owned();
    refused(&foreign, "this machine is called \"hdss7-12.host.com\", not \"hdss7-21.host.com\"")?;
    host.run(&["systemctl", "mask", "--runtime", "third.service"])?;
    let mut masked = two(host, "SAYS=second", "SAYS=x");
    masked.unit("third.service", &[]);
    refused(&masked, "third.service is masked; if it is to run: systemctl unmask third.service")
}

/// A unit that ends once before it serves, as an API server does whose etcd is late, is waited for; one that never serves is not for ever.
fn a_unit_that_systemd_starts_again_is_waited_for() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(ONE)?)?;
    let host = cluster.host("hdss7-12")?;
    let late = |more: &str| {
        let mut rendered = Rendered::for_host(host);
        let service = "/etc/systemd/system/late.service";
        let script = format!(
            "{more} [ -e /srv/tried ] || {{ touch /srv/tried; exit 4; }}; busybox httpd -p 127.0.0.1:9099 -h /srv; \
             systemd-notify --ready; exec sleep infinity"
        );
        let text = "[Service]\nType=notify\nNotifyAccess=all\nRestart=always\nRestartSec=1\nStartLimitIntervalSec=0\n";
        rendered.file(service, &format!("{text}ExecStart=/bin/sh -c '{script}'\n")).file("/srv/page", "served");
        rendered.unit("late.service", &[service]).with(
            "ready",
            json!({"url": "http://127.0.0.1:9099/page", "authority": null, "certificate": null, "key": null, "seconds": 60}),
        );
        rendered
    };
    let printed = late("").on(host)?;
    ensure!(printed.contains("late.service is ready") && property(host, "late", "NRestarts")? == "1", "{printed}");
    // What nobody waits for at its first start has served since, and is waited for when it is restarted.
    let mut unwaited = late(":;");
    unwaited.with("wait", json!(false));
    let printed = unwaited.on(host)?;
    ensure!(printed.contains("restart  late.service") && printed.contains("late.service is ready"), "{printed}");
    let broken = late("exit 5;").try_on(host)?;
    ensure!(broken.status.code() == Some(1) && broken.stderr.contains("it has ended 5 times"), "{broken:?}");
    is(host, "late", "active")
}

/// Killed while it waits for a unit, the call leaves a host that the next one mends, whatever that one's folder says.
fn a_call_that_was_killed_is_undone_by_the_next_one() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(ONE)?)?;
    let host = cluster.host("hdss7-12")?;
    two(host, "SAYS=first", "SAYS=x").on(host)?;
    host.write("/srv/silent", "")?;
    let silent = two(host, "SILENT=/srv/silent", "SAYS=y");
    silent.write(host)?;
    let call = apply(host, host.name()).start("netdadm")?;
    eventually(SOON, || is(host, "one", "activating"))?;
    let second = apply(host, host.name()).output()?;
    ensure!(second.stderr.contains("another `netdadm apply` is at work"), "{}", second.stderr);
    call.kill()?;
    ensure!(host.read("/etc/one.conf")? == "SILENT=/srv/silent");
    let printed = two(host, "SAYS=first", "SAYS=x").on(host)?;
    ensure!(printed.contains("its 2 files are put back first"), "{printed}");
    ensure!(printed.contains("restart  one.service: it may run with files of a call that was cut off"), "{printed}");
    ensure!(property(host, "one", "StatusText")? == "first" && start(host, "one").is_ok());
    // Power is lost in the middle of it.
    silent.write(host)?;
    let _call = apply(host, host.name()).start("netdadm")?;
    eventually(SOON, || is(host, "one", "activating"))?;
    host.run(&["rm", "/srv/silent"])?;
    cluster.cut_power("hdss7-12")?;
    cluster.switch_on(&["hdss7-12"])?;
    two(host, "SAYS=third", "SAYS=y").on(host)?;
    ensure!(property(host, "one", "StatusText")? == "third" && property(host, "other", "StatusText")? == "y");
    let left = host.run(&["find", "/etc", "-name", "*.netdadm-*"])?.stdout;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// Half of the files fit: none is left.
fn a_disk_that_is_full_half_way_leaves_nothing() -> Result<()> {
    let host = Host::start("hdss7-12.host.com")?;
    host.run(&["mkdir", "-p", "/run/root", "/run/bin"])?;
    host.run(&["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", "/run/root"])?;
    let mut rendered = Rendered::for_host(&host);
    for number in 0..16 {
        rendered.file(&format!("/etc/etcd/{number:02}"), &"x".repeat(40_000));
    }
    let out = "/run/out";
    rendered.write_to(&host, out)?;
    let program = lab::bin("netdadm")?;
    let call =
        || host.command(&program).args(["apply", "--yes", "--root", "/run/root", "--host", host.name()]).arg(out);
    let output = call().output()?;
    ensure!(output.status.code() == Some(1), "{}{}", output.stdout, output.stderr);
    ensure!(
        output.stderr.contains("No space left on device") && output.stderr.contains("make room"),
        "{}",
        output.stderr
    );
    ensure!(output.stderr.contains("files and units are as they were before"), "{}", output.stderr);
    ensure!(host.run(&["find", "/run/root", "-not", "-path", "*/netdadm/*", "-type", "f"])?.stdout.is_empty());
    ensure!(!host.path("/run/root/etc").exists());
    host.run(&["mount", "-o", "remount,size=4m", "/run/root"])?;
    let output = call().output().context("with room")?;
    ensure!(output.status.success(), "{}{}", output.stdout, output.stderr);
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[]).unless(Cluster::boot_obstacle()).run(lab::tests![
        a_unit_that_systemd_starts_again_is_waited_for,
        units_start_when_ready_and_only_what_changed_is_restarted,
        what_fails_is_undone_and_what_is_not_for_this_host_is_refused,
        a_call_that_was_killed_is_undone_by_the_next_one,
        a_disk_that_is_full_half_way_leaves_nothing,
    ])
}
