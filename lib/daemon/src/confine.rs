//! `confine`: what a daemon gives up before its first thread.
//!
//! | given up | by |
//! |---|---|
//! | every capability but CAP_NET_ADMIN, for ever | capabilities(7), PR_SET_NO_NEW_PRIVS |
//! | executing a program, every other call of [`REFUSED`], and children in namespaces of their own | seccomp(2): EPERM |
//! | letting others write what it makes, whatever it inherited | umask(2) |
//! | writing files anywhere but where the daemon has to, and executing any | landlock(7): EACCES |
//!
//! Invariants: what the kernel or the service manager refuses of it is named and hinders nothing: a daemon that cannot be confined works as
//! well as another. It holds for the thread that calls and all that it starts later, so it is called before the first one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use nix::sys::stat::{Mode, umask};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

/// What the kernel's network takes (capabilities(7)).
const KEPT: Capability = Capability::CAP_NET_ADMIN;

/// Where the network's parameters are, and where a container has those of its host. Beside them are those that name a program for the
/// kernel to execute, as root (`kernel/core_pattern`, `kernel/modprobe`).
const PARAMETERS: [&str; 2] = ["/proc/sys/net", "/host/proc/sys/net"];

/// The newest interface of landlock that is asked for (Linux 6.2); an older kernel gives what it has.
const INTERFACE: ABI = ABI::V3;

/// Calls that no part of a daemon makes, and that whoever took one over would want.
const REFUSED: [i64; 42] = [
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // Other file systems and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Its clock.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Calls in a ring, which no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Flags of clone(2) that give the child a namespace of its own; in one of users it has every capability again.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Where the second numbers begin that a kernel with x32 has for its calls (`__X32_SYSCALL_BIT`); on other machines nothing does.
const SECOND_NUMBERS: u32 = 0x4000_0000;

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// What could not be given up, and why.
    pub refused: Vec<String>,
}

impl Confined {
    fn note(&mut self, what: &str, done: Result<(), String>) {
        if let Err(why) = done {
            self.refused.push(format!("{what}: {why}"));
        }
    }

    /// Logs it.
    pub fn log(&self) {
        if self.refused.is_empty() {
            tracing::debug!("confined: CAP_NET_ADMIN alone, no programs, no files elsewhere");
        } else {
            tracing::info!(
                "not confined by itself in every way ({}); a service manager may do it",
                self.refused.join("; ")
            );
        }
    }
}

/// Confines the calling thread and all that it will start: below `folders`, which need not be there yet, and in the kernel's
/// parameters it may write. A folder that somebody removes can be made again.
#[must_use]
pub fn confine(folders: &[PathBuf]) -> Confined {
    let mut confined = Confined::default();
    let inherited = umask(Mode::empty());
    umask(inherited | Mode::S_IWGRP | Mode::S_IWOTH);
    confined.note("files", files(folders));
    confined.note("capabilities", capabilities());
    confined.note("calls", calls());
    confined
}

/// Gives up what no rule of landlock grants. The folders of parameters stay open for ever: the kernel makes what it forgets of /proc anew
/// when somebody asks for it, and no rule is about that.
fn files(folders: &[PathBuf]) -> Result<(), String> {
    let written = AccessFs::from_write(INTERFACE);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(written | AccessFs::Execute)
        .and_then(Ruleset::create)
        .map_err(|error| error.to_string())?;
    let parameters = PARAMETERS.iter().filter_map(|path| PathFd::new(path).ok()).collect::<Vec<_>>().leak();
    let folders = folders.iter().flat_map(|folder| grants(folder)).filter_map(|path| PathFd::new(path).ok());
    let folders: Vec<PathFd> = folders.collect();
    let rules = folders.iter().chain(&*parameters).map(|fd| PathBeneath::new(fd, written));
    let restricted = ruleset
        .add_rules(rules.map(Ok::<_, landlock::RulesetError>))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|error| error.to_string())?;
    match restricted.ruleset {
        RulesetStatus::NotEnforced => Err("landlock is missing or forbidden here".to_owned()),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

/// The folder, wherever a link leads, and the one that it is made in, now or anew.
fn grants(folder: &Path) -> Vec<PathBuf> {
    let above = folder.ancestors().skip(1).find(|above| above.exists()).filter(|above| above.parent().is_some());
    if above.is_none() {
        // Nothing but the root would be left to grant. Whoever writes into it says so if it cannot be made.
        let _ = fs::create_dir_all(folder);
    }
    above.into_iter().chain([folder]).map(Path::to_path_buf).collect()
}

/// Gives up all capabilities but [`KEPT`] of those that there are. One that cannot be given up hinders no other: without CAP_SETPCAP the
/// bounding set stays as it is.
fn capabilities() -> Result<(), String> {
    let kept: CapsHashSet = [KEPT].into();
    let read = |set| caps::read(None, set).map_err(|error| error.to_string());
    let mut refused = Ok(());
    for set in [CapSet::Ambient, CapSet::Bounding] {
        for capability in read(set)?.difference(&kept) {
            let dropped = caps::drop(None, set, *capability);
            refused = refused.and(dropped.map_err(|error| error.to_string()));
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let (held, wanted) = (read(set)?, read(set)?.intersection(&kept).copied().collect::<CapsHashSet>());
        if held != wanted {
            refused = refused.and(caps::set(None, set, &wanted).map_err(|error| error.to_string()));
        }
    }
    refused
}

/// Has the kernel refuse the calls of [`REFUSED`], by whatever number, and those for a child in one of [`NAMESPACES`]. What clone3(2) shall
/// do no filter sees: it is not there, and C libraries make their threads by clone(2) then.
fn calls() -> Result<(), String> {
    let mut rules: BTreeMap<_, _> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let namespaces = NAMESPACES.iter().map(|flag| with_flag(*flag)).collect::<Result<_, _>>();
    rules.insert(libc::SYS_clone, namespaces.map_err(|error| error.to_string())?);
    let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    refuse(
        BpfProgram::new(),
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
    )?;
    refuse(second_numbers(refusal.clone()), rules, refusal)
}

/// Has the kernel judge calls by `first`, and then answer those of `rules` with `refusal`.
fn refuse(first: BpfProgram, rules: BTreeMap<i64, Vec<SeccompRule>>, refusal: SeccompAction) -> Result<(), String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|error: BackendError| error.to_string())?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch).map_err(|error| error.to_string())?;
    let mut program = first;
    program.extend(BpfProgram::try_from(filter).map_err(|error| error.to_string())?);
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

/// A rule for a call whose first argument has `flag`.
fn with_flag(flag: i32) -> Result<SeccompRule, BackendError> {
    let flag = u64::from(flag.cast_unsigned());
    let has = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(flag), flag)?;
    SeccompRule::new(vec![has])
}

/// Answers every number from [`SECOND_NUMBERS`] with `refusal`: the rules behind know the first ones only.
fn second_numbers(refusal: SeccompAction) -> BpfProgram {
    let step = |code: u32, otherwise, k| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: 0,
        jf: otherwise,
        k,
    };
    vec![
        // The number is at the beginning of what the filter gets (struct seccomp_data).
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, SECOND_NUMBERS),
        step(libc::BPF_RET | libc::BPF_K, 0, u32::from(refusal)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_below_the_root_does_not_grant_the_whole_file_system() {
        assert_eq!(grants(Path::new("/proc")), [Path::new("/proc")]);
        assert_eq!(grants(Path::new("/proc/self")), [Path::new("/proc"), Path::new("/proc/self")]);
        assert_eq!(grants(Path::new("/proc/none/such")), [Path::new("/proc"), Path::new("/proc/none/such")]);
    }
}
