//! A verb under ptrace(2), held at the end of a system call that can change something outside of the process.
//!
//! Invariant: where it is held does not depend on time: at the end of its first such call, of its second, and so on.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::node::{Node, Outcome};

/// A verb that waits where it was let go to; the thread that started it must lead it.
pub(crate) struct Held {
    child: Child,
    pid: Pid,
    stops: usize,
    has_ended: bool,
}

impl Held {
    /// Starts `command` for interface eth0 of container `id`; it waits before its first instruction.
    pub(crate) fn start(node: &Node, command: &str, conf: &Value, id: &str, netns: &Path) -> Self {
        fs::write("/run/stdin", conf.to_string()).unwrap();
        let mut process = Command::new(node.plugin(conf["type"].as_str().unwrap()));
        process
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .stdin(File::open("/run/stdin").unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: ptrace(PTRACE_TRACEME) is one system call on no memory of ours.
        #[allow(unsafe_code)]
        let process = unsafe { process.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
        let child = process.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        waitpid(pid, None).unwrap();
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
        Self { child, pid, stops: 0, has_ended: false }
    }

    /// Lets it go on until `calls` more changing system calls have ended. `false`: it ended before, successfully.
    pub(crate) fn advance(&mut self, calls: usize) -> bool {
        let (mut ended_calls, mut signal) = (0, None);
        while ended_calls < calls {
            ptrace::syscall(self.pid, signal.take()).unwrap();
            match waitpid(self.pid, None).unwrap() {
                WaitStatus::PtraceSyscall(_) => {
                    self.stops += 1;
                    // Each call stops when it begins and when it ends.
                    if self.stops.is_multiple_of(2) && !was_private(self.pid) {
                        ended_calls += 1;
                    }
                }
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
                WaitStatus::Stopped(_, other) => signal = Some(other),
                WaitStatus::Exited(_, code) => {
                    assert_eq!(code, 0, "the verb failed by itself");
                    self.has_ended = true;
                    return false;
                }
                other => panic!("{other:?}"),
            }
        }
        true
    }

    /// Kills it where it is.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it run to its end and returns what it printed.
    pub(crate) fn finish(mut self) -> Outcome {
        let mut stdout = self.child.stdout.take().unwrap();
        if !self.has_ended {
            ptrace::detach(self.pid, None).unwrap();
        }
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).unwrap();
        // Reaped already when it ended under ptrace, which takes success for granted.
        let ok = self.has_ended || self.child.wait().unwrap().success();
        Outcome { ok, stdout: printed, notice: String::new() }
    }
}

/// True when the system call that has just ended concerned the process itself only, or only asked. Elsewhere than on
/// x86-64 the answer is always no, and the walk is longer.
fn was_private(pid: Pid) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        const PRIVATE: [nix::libc::c_long; 36] = [
            nix::libc::SYS_brk,
            nix::libc::SYS_clock_gettime,
            nix::libc::SYS_clock_nanosleep,
            nix::libc::SYS_close,
            nix::libc::SYS_execve,
            nix::libc::SYS_fcntl,
            nix::libc::SYS_fstat,
            nix::libc::SYS_futex,
            nix::libc::SYS_getdents64,
            nix::libc::SYS_getpid,
            nix::libc::SYS_getrandom,
            nix::libc::SYS_getsockname,
            nix::libc::SYS_lseek,
            nix::libc::SYS_mmap,
            nix::libc::SYS_mprotect,
            nix::libc::SYS_mremap,
            nix::libc::SYS_munmap,
            nix::libc::SYS_nanosleep,
            nix::libc::SYS_newfstatat,
            nix::libc::SYS_poll,
            nix::libc::SYS_prlimit64,
            nix::libc::SYS_read,
            nix::libc::SYS_readlink,
            nix::libc::SYS_recvfrom,
            nix::libc::SYS_recvmsg,
            nix::libc::SYS_rseq,
            nix::libc::SYS_rt_sigaction,
            nix::libc::SYS_rt_sigprocmask,
            nix::libc::SYS_sched_getaffinity,
            nix::libc::SYS_setsockopt,
            nix::libc::SYS_set_robust_list,
            nix::libc::SYS_set_tid_address,
            nix::libc::SYS_sigaltstack,
            nix::libc::SYS_socket,
            nix::libc::SYS_statx,
            nix::libc::SYS_wait4,
        ];
        let number = ptrace::getregs(pid).unwrap().orig_rax;
        PRIVATE.iter().any(|call| u64::try_from(*call).is_ok_and(|call| call == number))
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
