//! A process and all that it makes, stopped at each system call until its fault has happened.
//!
//! Invariant: what is stopped is let go on, whatever it stopped for; a supervisor that ends takes what it follows with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::memory::Thread;
use crate::netlink;
use crate::operation::{self, Call, Kind, Operation, Sockets};
use crate::{Effect, Injected, Plan};

const ENTRY: u8 = 1;
const EXIT: u8 = 2;

/// A call begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Entry,
    Exit,
}

/// What has been seen of a process so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Its faults, in their order.
    pub injected: Vec<Injected>,
    /// How many operations have begun.
    pub operations: usize,
    /// How it ended.
    pub ended: Option<ExitStatus>,
}

/// What follows one process; all of it happens on the thread that attached.
#[derive(Debug)]
pub(crate) struct Supervisor {
    process: Pid,
    plan: Plan,
    seen: Seen,
    /// The program is there: what the launcher did before counts for nothing.
    runs: bool,
    sockets: Sockets,
    /// Threads within a call, where the kernel does not say which of its two stops one is (user-mode Linux).
    within: BTreeSet<i32>,
    /// Calls that were begun and end otherwise than the kernel says, or whose end is of interest.
    pending: BTreeMap<i32, Pending>,
    /// The answers to these sequence numbers, each on a descriptor, become another errno.
    spoiled: BTreeMap<(u64, u32), Errno>,
}

#[derive(Debug, Clone, Copy)]
enum Pending {
    Fails(Errno),
    Socket {
        protocol: u64,
    },
    Received {
        fd: u64,
        at: u64,
        is_header: bool,
    },
    /// What is received is thrown away, as where the queue of a socket is full.
    Lost(Errno),
}

impl Supervisor {
    /// Takes over the process that `launcher` started, which has stopped itself or is about to.
    pub(crate) fn attach(process: i32, plan: Plan) -> Self {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_stopped(process) {
            assert!(Instant::now() < deadline, "the launcher did not stop itself");
            std::thread::yield_now();
        }
        let process = Pid::from_raw(process);
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(process, options).unwrap();
        kill(process, Signal::SIGCONT).unwrap();
        Self {
            process,
            plan,
            seen: Seen::default(),
            runs: false,
            sockets: Sockets::new(),
            within: BTreeSet::new(),
            pending: BTreeMap::new(),
            spoiled: BTreeMap::new(),
        }
    }

    /// Goes along until nothing of the process is left.
    pub(crate) fn follow(mut self) -> Seen {
        while self.step() {}
        self.seen
    }

    /// Waits for the next stop and lets it go on; `false`: nothing is left.
    fn step(&mut self) -> bool {
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let signal = match waitpid(None, Some(own)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                self.called(thread);
                return self.resume(thread, None);
            }
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                self.runs |= event == libc::PTRACE_EVENT_EXEC;
                return self.resume(thread, None);
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, signal),
            Ok(WaitStatus::Exited(pid, code)) => return self.end(pid, code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) => return self.end(pid, signal as i32),
            Ok(_) | Err(Errno::EINTR) => return true,
            Err(_) => return false,
        };
        self.resume(signal.0, Some(signal.1))
    }

    fn end(&mut self, pid: Pid, status: i32) -> bool {
        if pid == self.process {
            self.seen.ended = Some(ExitStatus::from_raw(status));
        }
        true
    }

    fn resume(&self, thread: Pid, signal: Option<Signal>) -> bool {
        // One that was killed meanwhile is gone; waitpid(2) says so next.
        let is_failing = self.pending.values().any(|pending| matches!(pending, Pending::Fails(_) | Pending::Lost(_)));
        let is_over = self.plan.is_empty() && self.spoiled.is_empty() && !is_failing;
        let _ = if is_over { ptrace::cont(thread, signal) } else { ptrace::syscall(thread, signal) };
        true
    }

    fn called(&mut self, pid: Pid) {
        let stop = self.stop(pid);
        let Ok(registers) = ptrace::getregs(pid) else { return };
        let thread = Thread(pid.as_raw());
        if stop == Some(Stop::Entry) && self.runs {
            let call = Call {
                number: registers.orig_rax.cast_signed(),
                args: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9],
            };
            self.begun(pid, call, thread);
        } else if stop == Some(Stop::Exit) {
            self.returned(pid, thread, registers);
        }
    }

    /// Which of the two stops of a call this is.
    fn stop(&mut self, pid: Pid) -> Option<Stop> {
        match ptrace::syscall_info(pid) {
            Ok(info) if info.op == ENTRY => Some(Stop::Entry),
            Ok(info) if info.op == EXIT => Some(Stop::Exit),
            // A thread that is gone comes to no stop any more.
            Ok(_) | Err(Errno::ESRCH) => None,
            Err(_) if self.within.remove(&pid.as_raw()) => Some(Stop::Exit),
            Err(_) => {
                self.within.insert(pid.as_raw());
                Some(Stop::Entry)
            }
        }
    }

    fn begun(&mut self, pid: Pid, call: Call, thread: Thread) {
        let [a, b, c, ..] = call.args;
        let interest = match call.number {
            libc::SYS_socket if a == 16 => Some(Pending::Socket { protocol: c }),
            libc::SYS_recvfrom => Some(Pending::Received { fd: a, at: b, is_header: false }),
            libc::SYS_recvmsg => Some(Pending::Received { fd: a, at: b, is_header: true }),
            _ => None,
        };
        self.pending.extend(interest.map(|interest| (pid.as_raw(), interest)));
        for (kind, object, request) in operation::of(call, thread, &self.sockets) {
            let operation = Operation { number: self.seen.operations, kind, object, request };
            self.seen.operations += 1;
            if let Some(effect) = self.plan.remove(&operation.number) {
                self.inject(pid, effect, operation, (a, thread));
            }
        }
    }

    fn inject(&mut self, pid: Pid, effect: Effect, operation: Operation, (fd, thread): (u64, Thread)) {
        let errnos = operation.kind.errnos();
        let errno = match effect {
            Effect::Fails(number) => Some(errnos[number % errnos.len()]),
            Effect::Killed => None,
        };
        match (errno, operation.request) {
            (None, _) => {
                // It may be gone already, and what was planned beyond is for the next start.
                let _ = kill(self.process, Signal::SIGKILL);
                self.plan.clear();
            }
            (Some(errno), Some(request)) => {
                if request.spoil(thread).is_err() {
                    return;
                }
                self.spoiled.insert((fd, request.sequence), errno);
            }
            (Some(errno), None) if operation.kind == Kind::Receive => {
                self.pending.insert(pid.as_raw(), Pending::Lost(errno));
            }
            (Some(errno), None) => {
                let skipped = ptrace::getregs(pid).and_then(|mut registers| {
                    registers.orig_rax = u64::MAX;
                    ptrace::setregs(pid, registers)
                });
                // Killed by somebody else meanwhile: nothing has failed.
                if skipped.is_err() {
                    return;
                }
                self.pending.insert(pid.as_raw(), Pending::Fails(errno));
            }
        }
        self.seen.injected.push(Injected { operation, errno });
    }

    fn returned(&mut self, pid: Pid, thread: Thread, mut registers: libc::user_regs_struct) {
        let result = registers.rax.cast_signed();
        match self.pending.remove(&pid.as_raw()) {
            Some(Pending::Fails(errno) | Pending::Lost(errno)) => {
                registers.rax = (-i64::from(errno as i32)).cast_unsigned();
                // One that was killed meanwhile needs no answer.
                let _ = ptrace::setregs(pid, registers);
            }
            Some(Pending::Socket { protocol }) if result >= 0 => {
                self.sockets.insert(thread.descriptor(registers.rax), protocol);
            }
            Some(Pending::Received { fd, at, is_header }) if result > 0 && !self.spoiled.is_empty() => {
                let length = usize::try_from(result).unwrap_or_default();
                let buffers = if is_header { thread.buffers(at) } else { vec![(at, length)] };
                let answered = |(&(asked, sequence), errno): (&(u64, u32), &mut Errno)| {
                    asked == fd && netlink::answer(thread, &buffers, sequence, *errno as i32)
                };
                self.spoiled.retain(|key, errno| !answered((key, errno)));
            }
            _ => {}
        }
    }
}

fn is_stopped(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
}
