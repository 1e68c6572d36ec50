//! The runner of the lab kernel (`tests/kernel/run`): what goes in arrives, what comes out is passed on, nothing stays.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Need, eventually, lab_kernel};

const SOON: Duration = Duration::from_secs(20);

/// The runner with the lab kernel, options and command to be added.
fn runner() -> Result<Command> {
    let mut command = Command::new(lab_kernel::script("run"));
    command.arg("-k").arg(lab_kernel::locate()?).stdin(Stdio::null());
    Ok(command)
}

fn run(args: &[&str]) -> Result<Output> {
    runner()?.args(args).output().context("start the runner")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn exit_status_and_streams_come_back_unchanged() -> Result<()> {
    let output = run(&["sh", "-c", "seq 1 20000; echo complaint >&2; exit 7"])?;
    ensure!(output.status.code() == Some(7), "{}", output.status);
    ensure!(text(&output.stdout) == (1..=20000).map(|n| format!("{n}\n")).collect::<String>(), "stdout was changed");
    ensure!(text(&output.stderr) == "complaint\n", "{}", text(&output.stderr));
    let output = run(&["printf", "[%s]", "a b", "it's", "", "$x", "two\nlines"])?;
    ensure!(text(&output.stdout) == "[a b][it's][][$x][two\nlines]", "{}", text(&output.stdout));
    Ok(())
}

fn death_by_signal_and_panic_of_the_kernel_differ() -> Result<()> {
    ensure!(run(&["bash", "-c", "kill -SEGV $$"])?.status.code() == Some(128 + 11));
    let output = run(&["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 9"])?;
    ensure!(output.status.code() == Some(125), "{}", output.status);
    ensure!(text(&output.stderr).contains("the guest died"), "{}", text(&output.stderr));
    Ok(())
}

fn output_streams_while_the_command_runs() -> Result<()> {
    let mut child = runner()?.args(["sh", "-c", "echo first; sleep 1000"]).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    ensure!(line == "first\n", "{line:?}");
    Ok(())
}

fn command_that_ignores_its_time_limit_is_ended() -> Result<()> {
    let started = Instant::now();
    let output = run(&["-t", "2", "bash", "-c", "trap '' TERM; while :; do :; done"])?;
    ensure!(output.status.code() == Some(124), "{}", output.status);
    ensure!(started.elapsed() < SOON, "it took {:?}", started.elapsed());
    Ok(())
}

fn guest_whose_kernel_stands_still_is_ended_and_says_so() -> Result<()> {
    let mut command = runner()?;
    command.env("NETD_LAB_STILL", "10").args(["sh", "-c", "echo first; sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut String::new())?;
    let stopped = kernels_of(child.id())?;
    ensure!(!stopped.is_empty(), "no process of the guest's kernel");
    for pid in stopped {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(122), "{}", output.status);
    ensure!(text(&output.stderr).contains("the guest stood still for 10 s"), "{}", text(&output.stderr));
    Ok(())
}

fn guest_that_only_takes_its_time_is_not_ended() -> Result<()> {
    let mut command = runner()?;
    command.env("NETD_LAB_STILL", "10").args(["sh", "-c", "sleep 25; echo done"]);
    let output = command.output()?;
    ensure!(output.status.success() && output.stdout == b"done\n", "{}: {}", output.status, text(&output.stderr));
    Ok(())
}

fn stacks_of_the_kernel_are_never_unmapped_for_a_moment() -> Result<()> {
    let output = run(&["gzip", "-dc", "/proc/config.gz"])?;
    let config = text(&output.stdout);
    ensure!(config.contains("CONFIG_UML=y"), "{}", text(&output.stderr));
    ensure!(!config.contains("CONFIG_VMAP_STACK=y"), "a guest stands still now and then, see config.fragment");
    Ok(())
}

/// The processes of the guest's kernel itself, below the runner `pid`.
fn kernels_of(pid: u32) -> Result<Vec<nix::unistd::Pid>> {
    let mut found = Vec::new();
    let mut below = vec![pid.to_string()];
    while let Some(pid) = below.pop() {
        if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("linux")) {
            found.push(nix::unistd::Pid::from_raw(pid.parse()?));
        }
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        below.extend(children.split_whitespace().map(str::to_owned));
    }
    Ok(found)
}

fn standard_input_environment_and_folder_go_in() -> Result<()> {
    let folder = fs::canonicalize(env!("CARGO_MANIFEST_DIR"))?;
    let mut command = runner()?;
    command.args(["-i", "-e", "GIVEN", "sh", "-c", "cat; echo \"$GIVEN|$HIDDEN|$NETD_LAB_GUEST\"; pwd"]);
    command.env("GIVEN", "a  b").env("HIDDEN", "no").current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().unwrap().write_all(b"input\n")?;
    let output = child.wait_with_output()?;
    ensure!(text(&output.stdout) == format!("input\na  b||1\n{}\n", folder.display()), "{}", text(&output.stdout));
    Ok(())
}

fn command_can_have_the_terminal() -> Result<()> {
    let line = format!(
        "{} -k {} -I sh -c 'tty; exit 5'",
        lab_kernel::script("run").display(),
        lab_kernel::locate()?.display()
    );
    // script(1) runs the line on a terminal of its own.
    let output = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .context("start script")?;
    ensure!(output.status.code() == Some(5), "{}: {}", output.status, text(&output.stdout));
    ensure!(text(&output.stdout).contains("/dev/tty1"), "{}", text(&output.stdout));
    Ok(())
}

fn only_named_folders_are_written_through() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().to_str().unwrap();
    let marker = "/var/lab-kernel-was-here";
    let script = format!("echo kept >{path}/file; touch {marker}; rm -rf /etc/hosts");
    ensure!(run(&["-w", path, "sh", "-c", &script])?.status.success());
    ensure!(fs::read_to_string(folder.path().join("file"))? == "kept\n");
    ensure!(!fs::exists(marker)?, "the guest wrote {marker} on the real machine");
    ensure!(fs::exists("/etc/hosts")?, "the guest removed /etc/hosts of the real machine");
    Ok(())
}

fn virtual_time_skips_what_is_slept() -> Result<()> {
    let started = Instant::now();
    let output = run(&["-T", "sh", "-c", "date +%s; sleep 3600; date +%s"])?;
    let seen: Vec<i64> = text(&output.stdout).lines().map(|line| line.parse()).collect::<Result<_, _>>()?;
    ensure!(seen.len() == 2 && seen[1] - seen[0] >= 3600, "{seen:?}");
    ensure!(started.elapsed() < Duration::from_secs(60), "an hour of guest time took {:?}", started.elapsed());
    Ok(())
}

fn runner_leaves_nothing_whether_it_ends_or_is_killed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let runner = |args: &[&str]| {
        let mut command = runner()?;
        command.env("TMPDIR", folder.path()).stdout(Stdio::piped()).args(args).spawn().context("start the runner")
    };
    ensure!(runner(&["true"])?.wait()?.success());
    ensure!(fs::read_dir(folder.path())?.count() == 0, "a finished run left files");
    let mut child = runner(&["sh", "-c", "echo up; sleep 1000"])?;
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new())?;
    let mark = folder.path().to_str().unwrap().to_owned();
    ensure!(!processes_with(&mark)?.is_empty(), "no process of the guest is found, so this test shows nothing");
    child.kill()?;
    ensure!(child.wait()?.signal() == Some(9));
    eventually(SOON, || match processes_with(&mark)?.as_slice() {
        [] => Ok(()),
        left => bail!("still there: {left:?}"),
    })?;
    eventually(SOON, || match fs::read_dir(folder.path())?.count() {
        0 => Ok(()),
        left => bail!("{left} files are still there"),
    })
}

/// Command lines of all processes that contain `part`.
fn processes_with(part: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Processes come and go while the folder is read.
        let Ok(line) = fs::read_to_string(entry?.path().join("cmdline")) else { continue };
        if line.contains(part) {
            found.push(line.replace('\0', " "));
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::LabKernel],
        lab::tests![
            exit_status_and_streams_come_back_unchanged,
            death_by_signal_and_panic_of_the_kernel_differ,
            output_streams_while_the_command_runs,
            command_that_ignores_its_time_limit_is_ended,
            guest_whose_kernel_stands_still_is_ended_and_says_so,
            guest_that_only_takes_its_time_is_not_ended,
            stacks_of_the_kernel_are_never_unmapped_for_a_moment,
            standard_input_environment_and_folder_go_in,
            command_can_have_the_terminal,
            only_named_folders_are_written_through,
            virtual_time_skips_what_is_slept,
            runner_leaves_nothing_whether_it_ends_or_is_killed,
        ],
    )
}
