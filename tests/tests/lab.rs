//! The lab proves itself: isolation, wiring, processes and their logs, clean-up after any end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Cluster, Etcd, Host, Need, Topology, echo, eventually};

const SOON: Duration = Duration::from_secs(20);

fn machines_reach_each_other_over_the_switch() -> Result<()> {
    let cluster = Cluster::reference()?;
    for target in cluster.hosts() {
        let address = target.address()?.to_string();
        cluster.host("hdss7-21")?.run(&["ping", "-c1", "-W5", &address])?;
    }
    cluster.host("hdss7-200")?.run(&["ping", "-c1", "-W5", "hdss7-11.host.com"])?;
    Ok(())
}

fn clusters_with_the_same_addresses_run_side_by_side() -> Result<()> {
    let drawing = Topology::parse("network 10.0.0.0/24\na 10.0.0.1\nb 10.0.0.2")?;
    let (first, second) = (Cluster::start(&drawing)?, Cluster::start(&drawing)?);
    let listener = first.host("b")?.within(|| TcpListener::bind("10.0.0.2:80"))??;
    let connect = |cluster: &Cluster| {
        let address = "10.0.0.2:80".parse()?;
        Ok::<_, anyhow::Error>(cluster.host("a")?.within(|| std::net::TcpStream::connect_timeout(&address, SOON))??)
    };
    connect(&first)?;
    ensure!(connect(&second).is_err(), "a machine of the second cluster reached the first");
    drop(listener);
    Ok(())
}

fn unplugged_machine_is_unreachable_until_plugged_in_again() -> Result<()> {
    let cluster = Cluster::start(&Topology::parse("network 10.0.0.0/24\na.x 10.0.0.1\nb.x 10.0.0.2")?)?;
    let ping = |wait: &str| cluster.host("a")?.run(&["ping", "-c1", "-W", wait, "10.0.0.2"]);
    ping("5")?;
    cluster.unplug("b")?;
    ensure!(ping("0.3").is_err(), "a packet reached an unplugged machine");
    cluster.plug("b")?;
    eventually(SOON, || ping("0.3"))?;
    Ok(())
}

fn machine_has_its_own_files_hostname_and_processes() -> Result<()> {
    let host = Host::start("own.example")?;
    ensure!(host.run(&["hostname"])?.stdout.trim() == "own.example");
    host.write("/var/lib/cni/lab-probe", "here")?;
    host.run(&["touch", "/etc/lab-probe", "/opt/lab-probe", "/run/lab-probe"])?;
    ensure!(host.read("/var/lib/cni/lab-probe")? == "here");
    for path in ["/var/lib/cni/lab-probe", "/etc/lab-probe", "/opt/lab-probe", "/run/lab-probe"] {
        ensure!(!std::path::Path::new(path).exists(), "{path} appeared on the real machine");
    }
    ensure!(host.run(&["sh", "-c", "ls -d /sys/class/net/*/"])?.stdout.trim() == "/sys/class/net/lo/");
    ensure!(host.run(&["cat", "/proc/1/comm"])?.stdout.trim() == "cat");
    ensure!(
        host.read("/proc/sys/net/ipv4/ip_forward")?.trim()
            == fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim()
    );
    ensure!(host.run(&["cat", "/proc/sys/net/ipv4/ip_forward"])?.stdout.trim() == "0");
    Ok(())
}

fn pods_of_one_name_live_on_two_machines() -> Result<()> {
    let hosts = [Host::start("a")?, Host::start("b")?];
    let pods = [hosts[0].pod("web")?, hosts[1].pod("web")?];
    pods[0].run(&["ip", "link", "add", "eth0", "type", "bridge"])?;
    ensure!(pods[0].run(&["ip", "-br", "link"])?.stdout.contains("eth0"));
    ensure!(!pods[1].run(&["ip", "-br", "link"])?.stdout.contains("eth0"));
    ensure!(!hosts[0].run(&["ip", "-br", "link"])?.stdout.contains("eth0"));
    ensure!(pods[0].netns().to_str() == Some("/run/netns/cni-web"));
    // The file is what another program of the machine sees.
    ensure!(hosts[0].run(&["nsenter", "--net=/run/netns/cni-web", "ip", "-br", "link"])?.stdout.contains("eth0"));
    Ok(())
}

fn failed_command_reports_place_status_and_streams() -> Result<()> {
    let host = Host::start("a")?;
    let error = host.run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap_err().to_string();
    for part in ["[a] sh -c", "exit status: 7", "stdout: out", "stderr: err"] {
        ensure!(error.contains(part), "{part:?} is missing in {error}");
    }
    let error = host.command("sleep").arg("60").limit(Duration::from_millis(100)).run().unwrap_err().to_string();
    ensure!(error.contains("killed after its limit"), "{error}");
    ensure!(host.run(&["no-such-program"]).is_err());
    ensure!(host.command("cat").input("whole input").run()?.stdout == "whole input");
    Ok(())
}

fn process_log_is_followed_and_exit_is_reported() -> Result<()> {
    let host = Host::start("a")?;
    let script = "trap 'echo bye; exit 3' TERM; echo ready >&2; while :; do sleep 0.05; done";
    let process = host.command("bash").args(["-c", script]).start("shell")?;
    ensure!(process.wait_for_line("read", SOON)? == "ready");
    ensure!(process.terminate(SOON)?.code() == Some(3));
    ensure!(process.log() == "ready\nbye", "{:?}", process.log());
    ensure!(
        process.signal(nix::sys::signal::Signal::SIGTERM).is_err(),
        "a signal was sent to a process that had ended"
    );
    let error = process.wait_for_line("never", SOON).unwrap_err();
    ensure!(format!("{error:#}").contains("| bye"), "{error:#}");
    Ok(())
}

fn dropped_process_ends_at_once_with_its_children() -> Result<()> {
    let host = Host::start("a")?;
    let listed = || host.run(&["pgrep", "-c", "sleep"]).map(|output| output.stdout);
    let process = host.command("sleep").arg("1000").start("sleeper")?;
    eventually(SOON, listed)?;
    drop(process);
    ensure!(listed().is_err());
    let _orphan = host.run(&["sh", "-c", "sleep 1000 & sleep 1001 &"])?;
    let pid = host.pid();
    drop(host);
    ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the machine's first process still runs");
    Ok(())
}

fn three_etcd_members_survive_the_loss_of_one() -> Result<()> {
    let cluster = Cluster::reference()?;
    let mut etcd = Etcd::start(cluster.with_role("etcd"))?;
    ensure!(etcd.etcdctl(&["member", "list"])?.stdout.lines().count() == 3);
    etcd.put("/coreos.com/network/config", "{\"Network\": \"172.7.0.0/16\"}\n")?;
    etcd.kill("hdss7-12")?;
    eventually(SOON, || etcd.put("/coreos.com/network/subnets/a", "-"))?;
    etcd.restart("hdss7-12")?;
    etcd.pause("hdss7-21")?;
    ensure!(
        eventually(SOON, || etcd.get("/coreos.com/network/config"))?.as_deref()
            == Some("{\"Network\": \"172.7.0.0/16\"}\n")
    );
    etcd.resume("hdss7-21")?;
    ensure!(etcd.keys("/coreos.com/network/")? == ["/coreos.com/network/config", "/coreos.com/network/subnets/a"]);
    etcd.delete("/coreos.com/network/subnets/a")?;
    ensure!(etcd.get("/coreos.com/network/subnets/a")?.is_none());
    ensure!(etcd.delete("/coreos.com/network/subnets/a").is_err());
    Ok(())
}

fn echo_server_sends_its_name_and_whom_it_saw() -> Result<()> {
    let cluster = Cluster::start(&Topology::parse("network 10.0.0.0/24\na 10.0.0.1\nb 10.0.0.2")?)?;
    let (client, server) = (cluster.host("a")?, cluster.host("b")?);
    let process = echo::serve(server, "web-1", 80)?;
    let address = "10.0.0.2:80".parse()?;
    for answer in [echo::ask_tcp(client, address, SOON)?, echo::ask_udp(client, address, SOON)?] {
        ensure!(answer.name == "web-1" && answer.client.ip().to_string() == "10.0.0.1", "{answer:?}");
    }
    let mut kept = echo::Connection::open(client, address, SOON)?;
    ensure!(kept.ask()?.client == kept.ask()?.client, "a kept connection changed its port");
    ensure!(client.run(&["curl", "-sS", "-m5", "http://10.0.0.2/"])?.stdout.contains("\"name\":\"web-1\""));
    process.kill()?;
    ensure!(kept.ask().is_err() && echo::ask_tcp(client, address, SOON).is_err());
    Ok(())
}

/// Not a test of its own: what `killed_test_leaves_nothing_behind` starts and kills.
fn victim() -> Result<()> {
    let cluster = Cluster::start(&Topology::parse("network 10.0.0.0/24\na 10.0.0.1")?)?;
    let _pod = cluster.host("a")?.pod("web")?;
    let _sleeper = cluster.host("a")?.command("sleep").arg("1000").start("sleeper")?;
    for host in cluster.hosts().chain([cluster.switch()]) {
        println!("{}", fs::read_link(format!("/proc/{}/ns/pid", host.pid()))?.display());
    }
    println!("end of list");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    bail!("the victim was not killed")
}

fn killed_test_leaves_nothing_behind() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the victim")?;
    let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let spaces: Vec<String> = lines.map_while(Result::ok).take_while(|line| line != "end of list").collect();
    ensure!(spaces.len() == 2, "the victim made no cluster: {spaces:?}");
    ensure!(!inhabitants(&spaces)?.is_empty(), "nobody lives in the victim's namespaces, so this test shows nothing");
    child.kill()?;
    child.wait()?;
    eventually(SOON, || match inhabitants(&spaces)?.as_slice() {
        [] => Ok(()),
        left => bail!("still there: {left:?}"),
    })
}

/// Starts this program as `CHROOTED` in a chroot below a mount namespace of its own: `DIR` once as a mount point, once as a folder.
const IN_A_CHROOT: &str = r#"
set -eu
mount -t tmpfs tmpfs "$DIR"
mkdir "$DIR/point" "$DIR/folder"
mount --rbind / "$DIR/point"
for entry in /*; do
  if [ -L "$entry" ]; then cp -a "$entry" "$DIR/folder/"; continue; fi
  [ -d "$entry" ] || continue
  mkdir "$DIR/folder$entry"
  mount --rbind "$entry" "$DIR/folder$entry"
done
chroot "$DIR/$KIND" "$PROGRAM"
"#;

fn machine_that_would_not_be_apart_is_refused_before_it_writes() -> Result<()> {
    for kind in ["point", "folder"] {
        let folder = tempfile::tempdir()?;
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", IN_A_CHROOT])
            .env("DIR", folder.path())
            .env("KIND", kind)
            .env("PROGRAM", std::env::current_exe()?)
            .env(CHROOTED, "1")
            .output()
            .context("start a chroot")?;
        let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        ensure!(stdout.contains("refused: this process runs in a chroot"), "{kind}: {stdout}{stderr}");
        ensure!(!fs::exists(CHROOT_PROBE)?, "{kind}: the machine wrote {CHROOT_PROBE} of the real one");
    }
    Ok(())
}

/// A node's own networks and plugins, in a mount namespace that stands for it.
const ON_A_NODE: &str = r#"
set -eu
for folder in /etc /opt /var; do mount -t overlay -o "lowerdir=$folder,upperdir=$DIR$folder,workdir=$DIR/work$folder" overlay "$folder"; done
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni/networks
touch /etc/cni/net.d/10-own.conflist /opt/cni/bin/own /var/lib/cni/networks/own
exec "$PROGRAM"
"#;

fn machine_begins_without_the_networks_of_the_real_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = format!(
        "mount -t tmpfs tmpfs \"$DIR\"; mkdir -p \"$DIR\"/{{etc,opt,var}} \"$DIR\"/work/{{etc,opt,var}}{ON_A_NODE}"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-c", &script])
        .env("DIR", folder.path())
        .env("PROGRAM", std::env::current_exe()?)
        .env(ON_NODE, "1")
        .output()
        .context("start a node")?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success() && stdout.is_empty(), "the machine has {stdout}{stderr}");
    Ok(())
}

/// Not a test of its own: what the test above starts on a node.
fn on_node() -> Result<()> {
    ensure!(fs::exists("/opt/cni/bin/own")?, "the node has no plugin, so this shows nothing");
    let host = Host::start("a")?;
    print!("{}", host.run(&["sh", "-c", "find /etc/cni /opt/cni /var/lib/cni -type f 2>/dev/null || true"])?.stdout);
    ensure!(fs::exists("/opt/cni/bin/own")?, "the machine cleared the real folder");
    Ok(())
}

/// Not a test of its own: what the test about chroots starts in one.
fn chrooted() -> Result<()> {
    match Host::start("a") {
        Err(refusal) => println!("refused: {refusal:#}"),
        Ok(host) => {
            host.write(CHROOT_PROBE, "here")?;
            println!("made a machine, and wrote");
        }
    }
    Ok(())
}

fn written_file_replaces_a_link_that_leads_out_of_the_machine() -> Result<()> {
    let host = Host::start("a")?;
    let outside = tempfile::NamedTempFile::new()?;
    fs::write(outside.path(), "a built program")?;
    let target = outside.path().to_str().context("a path of UTF-8")?;
    host.run(&["ln", "-s", target, "/opt/linked"])?;
    host.write("/opt/linked", "a script")?;
    ensure!(fs::read_to_string(outside.path())? == "a built program", "the file behind the link was overwritten");
    ensure!(host.read("/opt/linked")? == "a script");
    Ok(())
}

/// Processes that live in one of these PID namespaces.
fn inhabitants(spaces: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // Processes come and go while the folder is read.
        let Ok(space) = fs::read_link(path.join("ns/pid")) else { continue };
        if spaces.iter().any(|wanted| *wanted == space.to_string_lossy()) {
            found.push(fs::read_to_string(path.join("cmdline")).unwrap_or_default().replace('\0', " "));
        }
    }
    Ok(found)
}

/// Runs the one test of this program that needs what no kernel has under `NETD_LAB_WHERE=host`.
fn run_hopeless(mode: &str) -> Result<std::process::Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(HOPELESS, "1").env("NETD_LAB_WHERE", "host").env("NETD_LAB", mode).env_remove("NETD_LAB_VIRTUAL_TIME");
    command.output().context("start this program again")
}

fn test_that_cannot_run_is_never_counted_as_passed() -> Result<()> {
    let skipped = run_hopeless("")?;
    let (stdout, stderr) = (String::from_utf8(skipped.stdout)?, String::from_utf8(skipped.stderr)?);
    ensure!(skipped.status.success() && stdout.contains("0 passed; 0 failed; 1 ignored"), "{stdout}");
    ensure!(stderr.contains("SKIPPED, not passed: this kernel has no virtual time"), "{stderr}");
    let required = run_hopeless("require")?;
    let stdout = String::from_utf8(required.stdout)?;
    ensure!(!required.status.success() && stdout.contains("0 passed; 1 failed; 0 ignored"), "{stdout}");
    Ok(())
}

fn never_reached() -> Result<()> {
    Ok(())
}

/// Makes this program run `never_reached` with a need that is not met.
const HOPELESS: &str = "LAB_TEST_HOPELESS";
/// Makes this program try to make a machine and to write into it.
const CHROOTED: &str = "LAB_TEST_CHROOTED";
/// What it would write; a machine has an /opt of its own.
const CHROOT_PROBE: &str = "/opt/lab-probe-of-a-chroot";
/// Makes this program list what a machine has of the node's networks.
const ON_NODE: &str = "LAB_TEST_ON_NODE";
/// Makes this program the victim of `killed_test_leaves_nothing_behind`.
const VICTIM: &str = "LAB_TEST_VICTIM";

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        eprintln!("lab: the victim ended by itself: {:?}", victim());
        return ExitCode::FAILURE;
    }
    if std::env::var_os(CHROOTED).is_some() {
        return if chrooted().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if std::env::var_os(ON_NODE).is_some() {
        return on_node().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if std::env::var_os(HOPELESS).is_some() {
        return lab::harness::main(&[Need::VirtualTime], lab::tests![never_reached]);
    }
    lab::harness::main(
        &[],
        lab::tests![
            machines_reach_each_other_over_the_switch,
            clusters_with_the_same_addresses_run_side_by_side,
            unplugged_machine_is_unreachable_until_plugged_in_again,
            machine_has_its_own_files_hostname_and_processes,
            pods_of_one_name_live_on_two_machines,
            failed_command_reports_place_status_and_streams,
            process_log_is_followed_and_exit_is_reported,
            dropped_process_ends_at_once_with_its_children,
            killed_test_leaves_nothing_behind,
            machine_that_would_not_be_apart_is_refused_before_it_writes,
            machine_begins_without_the_networks_of_the_real_one,
            written_file_replaces_a_link_that_leads_out_of_the_machine,
            test_that_cannot_run_is_never_counted_as_passed,
            three_etcd_members_survive_the_loss_of_one,
            echo_server_sends_its_name_and_whom_it_saw,
        ],
    )
}
