//! What a whole process does: the test executes itself, and the child ends or notifies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use daemon::lifecycle::{Exit, Notice, exit_on_panic, notify};
use daemon::log::{Form, Log, Settings};
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
        Ok("notify") => {
            let ready = [Notice::Starting, Notice::Ready, Notice::Reloading, Notice::Ready];
            ready.into_iter().chain([Notice::Watchdog, Notice::Stopping]).for_each(notify);
        }
        _ => {}
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
