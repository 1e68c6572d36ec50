//! What a whole process does: the test executes itself, and the child ends or notifies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use daemon::http::Page;
use daemon::lifecycle::{Exit, Notice, exit_on_panic, notify};
use daemon::log::{Form, Log, Settings};
use daemon::shell::{self, Places, Program, Shell};
use serde_json::Value;

/// Tells the child which part it plays.
const PART: &str = "DAEMON_TEST_PART";

/// Runs this test binary again as `part`; the test named `child` is the one that plays it.
fn play(part: &str, variables: &[(&str, &str)]) -> Output {
    let child = std::env::current_exe().unwrap();
    let mut command = Command::new(child);
    command.args(["--exact", "child", "--nocapture"]).env(PART, part).envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn child() {
    match std::env::var(PART).as_deref() {
        Ok("panic") => {
            exit_on_panic();
            let thread = std::thread::spawn(|| panic!("the kernel thread is broken"));
            let _ = thread.join();
            unreachable!("the process goes on without its thread");
        }
        Ok("panic in JSON") => {
            Log::start("netd", "0.1.0", Settings { form: Form::Json, ..Settings::default() }).unwrap();
            exit_on_panic();
            let _ = std::thread::spawn(|| panic!("the kernel thread is broken")).join();
        }
        Ok("log") => {
            exit_on_panic();
            // What is logged two lines further on has its stack written.
            let backtrace_at = format!("process.rs:{}", line!() + 2).parse().ok();
            Log::start("netd", "0.1.0", Settings { backtrace_at, ..Settings::default() }).unwrap();
            tracing::warn!("nobody takes this");
            daemon::terminal::note("nor this");
            println!("the process went on");
        }
        Ok("loop") => run_a_loop(),
        Ok("stop") => stop_slowly(),
        Ok("notify") => {
            let ready = [Notice::Starting, Notice::Ready, Notice::Reloading, Notice::Ready];
            ready.into_iter().chain([Notice::Watchdog, Notice::Stopping]).for_each(notify);
        }
        _ => {}
    }
}

/// Where the child keeps its run-time files.
const FOLDER: &str = "DAEMON_TEST_FOLDER";

/// Takes long to be dropped: the thread that judges the loops looks several times meanwhile.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

/// A daemon that is asked to end, and whose loop is gone for a while before it has ended.
fn stop_slowly() {
    run_as_netd(|shell| async move {
        let _slow = Slow;
        let _heartbeat = shell.liveness.heartbeat("the loop", Duration::from_secs(60));
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        std::future::pending().await
    });
}

#[test]
fn a_loop_that_goes_because_the_daemon_is_asked_to_end_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    // A watchdog of 40 ms has the loops judged every 20 ms.
    let output = play("stop", &[(FOLDER, folder.path().to_str().unwrap()), ("WATCHDOG_USEC", "40000")]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("ending; the data path stays as it is"), "{log}");
    assert!(!log.contains("has ended") && !log.contains("ERROR"), "{log}");
}

/// A daemon of one loop, which is stuck from the line `busy` of its input to the line `idle`, and ends with the input.
fn run_a_loop() {
    run_as_netd(|shell| async move {
        let heartbeat = shell.liveness.heartbeat("the loop", Duration::from_millis(50));
        let (orders, mut waiting) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || std::io::stdin().lines().all(|line| orders.send(line.unwrap()).is_ok()));
        while let Some(order) = waiting.recv().await {
            if order == "busy" { heartbeat.busy() } else { heartbeat.idle() }
        }
        Ok(())
    });
}

/// Runs `daemon` in the frame.
fn run_as_netd<F: Future<Output = Result<(), std::io::Error>>>(daemon: impl FnOnce(Shell) -> F) {
    let log = Log::start("netd", "0.1.0", Settings::default()).unwrap();
    let program = Program {
        name: "netd",
        version: "0.1.0",
        gates: &["leases"],
        render: |status| status.to_string(),
        health: |_, _| Page::text(200, "ok"),
    };
    let places = Places {
        run_dir: PathBuf::from(std::env::var_os(FOLDER).unwrap()),
        written: Vec::new(),
        listeners: Vec::new(),
    };
    shell::run(&program, &places, log, daemon).unwrap();
}

#[test]
fn watchdog_is_fed_while_every_loop_makes_progress_and_not_while_one_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(PART, "loop").env(FOLDER, folder.path());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let fed = |within: Duration| {
        manager.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 256];
        loop {
            match manager.recv(&mut buffer) {
                Ok(size) if buffer[..size].starts_with(b"WATCHDOG=1") => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    };
    let (soon, period) = (Duration::from_secs(30), Duration::from_millis(200));
    assert!(fed(soon) && fed(soon), "the loop waits");
    writeln!(input, "busy").unwrap();
    let named = log.find(|line| line.as_ref().is_ok_and(|line| line.contains("the loop: no progress")));
    assert!(named.is_some(), "the log names the loop");
    // What was sent before.
    while fed(Duration::from_millis(1)) {}
    assert!(!fed(5 * period), "the loop is stuck");
    writeln!(input, "idle").unwrap();
    assert!(fed(soon), "the loop goes on");
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn hangup_before_the_daemon_is_ready_does_not_say_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(PART, "loop").env(FOLDER, folder.path());
    command.env("NOTIFY_SOCKET", &path).env_remove("WATCHDOG_USEC");
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut logged = |words: &str| log.find(|line| line.as_ref().is_ok_and(|line| line.contains(words))).is_some();
    assert!(logged("netd starts"), "its signals are followed");
    let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGHUP).unwrap();
    assert!(logged("everything is compared"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    manager.set_nonblocking(true).unwrap();
    let mut buffer = [0; 256];
    while let Ok(size) = manager.recv(&mut buffer) {
        let notice = String::from_utf8_lossy(&buffer[..size]);
        assert!(!notice.contains("READY=1") && !notice.contains("RELOADING=1"), "{notice}");
    }
}

#[test]
fn panic_of_a_thread_ends_the_process_with_its_own_exit_code() {
    let output = play("panic", &[]);
    assert_eq!(output.status.code(), Some(i32::from(Exit::Panic.code())));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the kernel thread is broken"));
}

#[test]
fn panic_goes_to_the_log_and_a_log_in_json_holds_nothing_else() {
    let output = play("panic in JSON", &[]);
    assert_eq!(output.status.code(), Some(i32::from(Exit::Panic.code())));
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let message = lines.last().unwrap()["message"].as_str().unwrap();
    assert!(message.contains("the kernel thread is broken"), "{text}");
}

#[test]
fn log_that_nobody_takes_hinders_nothing() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for (what, stderr) in [("a full disk", Stdio::from(full)), ("a pipe without a reader", Stdio::from(closed))] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--nocapture"]).env(PART, "log").stderr(stderr);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{what}: {}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("the process went on"), "{what}");
    }
}

#[test]
fn service_manager_receives_every_notice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let output = play("notify", &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert!(output.status.success());
    let mut received = Vec::new();
    for _ in 0..6 {
        let mut buffer = [0; 256];
        let size = manager.recv(&mut buffer).unwrap();
        received.push(String::from_utf8_lossy(&buffer[..size]).into_owned());
    }
    let reloading = received.remove(2);
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(received.concat(), "EXTEND_TIMEOUT_USEC=60000000\nREADY=1\nREADY=1\nWATCHDOG=1\nSTOPPING=1\n");
}
