//! A call under ptrace(2), killed at the end of a system call that changes a file.
//!
//! Invariant: where it is killed does not depend on time: at the end of its first such call, of its second, and so on.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// System calls that change something in a file system.
const CHANGES: [libc::c_long; 13] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rename,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
];

/// Runs a call until its `calls`th change has been made, and kills it there. `false`: it ended before, with success.
#[allow(clippy::zombie_processes, reason = "waitpid(2) has collected one that ended")]
pub(crate) fn killed(mut command: Command, calls: usize) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: ptrace(PTRACE_TRACEME) is one system call on no memory of ours.
    #[allow(unsafe_code)]
    let command = unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(pid, None).unwrap();
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let (mut stops, mut changes, mut signal) = (0_usize, 0, None);
    while changes < calls {
        ptrace::syscall(pid, signal.take()).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                stops += 1;
                // Each call stops when it begins and when it ends.
                changes += usize::from(stops.is_multiple_of(2) && changes_a_file(pid));
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, code) => {
                assert_eq!(code, 0, "the call failed by itself");
                return false;
            }
            other => panic!("{other:?}"),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

fn changes_a_file(pid: Pid) -> bool {
    let registers = ptrace::getregs(pid).unwrap();
    let is = |call: libc::c_long| u64::try_from(call).unwrap() == registers.orig_rax;
    let creates = is(libc::SYS_openat) && registers.rdx & u64::try_from(libc::O_CREAT).unwrap() != 0;
    creates || CHANGES.iter().any(|call| is(*call))
}
