//! Killed after every single step: what a following DEL or GC leaves is what was there before.
//!
//! The plugin runs under ptrace(2) and is killed at the end of a system call that can change something outside of the
//! process: at the end of the first in the first round, of the second in the second, until it gets through.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kernel::nft::Nft;
use netstate::nft::{Family, Name, TableKey};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::node::{Node, flannel, native, with};

type Test = (&'static str, fn(&Node));

pub(crate) const TESTS: &[Test] = &[
    ("add_killed_after_any_step_is_undone_by_del", add_then_del),
    ("add_killed_after_any_step_is_undone_by_gc", add_then_gc),
    ("del_killed_after_any_step_is_finished_by_del", del_then_del),
    ("flannel_add_killed_after_any_step_is_undone_by_del", flannel_add_then_del),
];

/// True when the system call that has just ended only concerned the process itself. Elsewhere than on x86-64 the
/// answer is always no, and the walk is longer.
fn was_private(pid: Pid) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        const PRIVATE: [nix::libc::c_long; 16] = [
            nix::libc::SYS_brk,
            nix::libc::SYS_close,
            nix::libc::SYS_fcntl,
            nix::libc::SYS_fstat,
            nix::libc::SYS_lseek,
            nix::libc::SYS_mmap,
            nix::libc::SYS_mprotect,
            nix::libc::SYS_munmap,
            nix::libc::SYS_read,
            nix::libc::SYS_recvfrom,
            nix::libc::SYS_rt_sigaction,
            nix::libc::SYS_rt_sigprocmask,
            nix::libc::SYS_setsockopt,
            nix::libc::SYS_sigaltstack,
            nix::libc::SYS_socket,
            nix::libc::SYS_getsockname,
        ];
        let number = ptrace::getregs(pid).unwrap().orig_rax;
        PRIVATE.iter().any(|call| u64::try_from(*call).is_ok_and(|call| call == number))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The node's state that concerns Pods.
type State = (Vec<String>, Vec<(String, String)>, usize);

fn state(node: &Node) -> State {
    let table = TableKey { family: Family::Inet, name: Name::literal("netd-ports-cbr0") };
    let elements = Nft::open().unwrap().ruleset(&table).unwrap().map_or(0, |ruleset| ruleset.elements.len());
    (node.links(), node.files(), elements)
}

/// Starts one verb under ptrace(2); it waits before its first instruction.
fn start(node: &Node, command: &str, conf: &Value, netns: &Path) -> Child {
    fs::write("/run/stdin", conf.to_string()).unwrap();
    let mut process = Command::new(node.plugin(conf["type"].as_str().unwrap()));
    process
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "victim")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .stdin(File::open("/run/stdin").unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: ptrace(PTRACE_TRACEME) is one system call on no memory of ours.
    #[allow(unsafe_code)]
    let process = unsafe { process.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    process.spawn().unwrap()
}

/// Runs one verb until its `calls`th changing system call has ended, and kills it there. `false`: it ended before.
fn killed(node: &Node, command: &str, conf: &Value, netns: &Path, calls: usize) -> bool {
    let mut child = start(node, command, conf, netns);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(pid, None).unwrap();
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let (mut stops, mut ended_calls) = (0, 0);
    let mut signal = None;
    let ended = loop {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                stops += 1;
                // Each call stops when it begins and when it ends.
                if stops % 2 == 0 && !was_private(pid) {
                    ended_calls += 1;
                }
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0, "{command} failed by itself");
                break true;
            }
            other => panic!("{other:?}"),
        }
        if ended_calls == calls {
            break false;
        }
    };
    // Reaped already when it ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    !ended
}

/// Kills `command` after its first, second, ... step; before each round `prepare`, after it `finish`, and then
/// all must be as in the beginning.
fn walk(node: &Node, command: &str, conf: &Value, prepare: impl Fn(&Path), finish: impl Fn(&Path)) {
    // The bridge, the directories and the table are the network's: the first Pod makes them, and they stay.
    let first = node.pod();
    node.add(conf, "first", &first).result();
    node.del(conf, "first", &first).silent();
    let before = state(node);
    let mut rounds = 0;
    for calls in 1.. {
        let pod = node.pod();
        prepare(&pod);
        let was_killed = killed(node, command, conf, &pod, calls);
        finish(&pod);
        assert_eq!(state(node), before, "{command} killed after change {calls}");
        node.remove_pod(&pod);
        if !was_killed {
            break;
        }
        rounds = calls;
    }
    assert!(rounds > 20, "only {rounds} system calls: the walk did not reach the work");
}

fn with_port(conf: &Value) -> Value {
    with(conf, "runtimeConfig", json!({"portMappings": [{"hostPort": 53, "containerPort": 53, "protocol": "udp"}]}))
}

fn add_then_del(node: &Node) {
    let conf = with_port(&native());
    walk(node, "ADD", &conf, |_| {}, |pod| node.del(&conf, "victim", pod).silent());
}

fn add_then_gc(node: &Node) {
    let conf = with_port(&with(&native(), "cniVersion", json!("1.1.0")));
    let gc = |_: &Path| node.exec("netd-cni", &[("CNI_COMMAND", "GC")], &native_gc(&conf)).silent();
    walk(node, "ADD", &conf, |_| {}, gc);
}

fn native_gc(conf: &Value) -> String {
    with(conf, "cni.dev/valid-attachments", json!([])).to_string()
}

fn del_then_del(node: &Node) {
    let conf = with_port(&native());
    let add = |pod: &Path| drop(node.add(&conf, "victim", pod).result());
    walk(node, "DEL", &conf, add, |pod| node.del(&conf, "victim", pod).silent());
}

fn flannel_add_then_del(node: &Node) {
    let conf = flannel();
    walk(node, "ADD", &conf, |_| {}, |pod| node.del(&conf, "victim", pod).silent());
}
