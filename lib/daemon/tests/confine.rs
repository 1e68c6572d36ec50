//! What a thread cannot do any more once it was confined; each test confines a thread of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;

use caps::{CapSet, Capability};
use daemon::confine::{Confined, confine};

/// Does it on a thread of its own: what it gives up is gone for that alone.
fn confined<T: Send>(folders: &[PathBuf], work: impl FnOnce(Confined) -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| work(confine(folders))).join().unwrap())
}

fn has_landlock(confined: &Confined) -> bool {
    !confined.refused.iter().any(|refused| refused.starts_with("files"))
}

#[test]
fn no_program_is_executed_and_files_are_written_in_the_own_folders_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("run/own"), folder.path().join("other"));
    fs::create_dir(&other).unwrap();
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(other.join("file"), "as it was").unwrap();
    let work = |confined: Confined| {
        let executed = Command::new("/bin/true").status();
        assert_eq!(executed.unwrap_err().kind(), ErrorKind::PermissionDenied);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("file"), "new").unwrap();
        fs::rename(own.join("file"), own.join("renamed")).unwrap();
        // An operator who cleans up.
        fs::remove_dir_all(&own).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(own.join("file"), "again").unwrap();
        assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "as it was");
        if !has_landlock(&confined) {
            eprintln!("skipped in part: {:?}", confined.refused);
            return;
        }
        for written in [fs::write(other.join("file"), "new"), fs::write(other.join("new"), "new")] {
            assert_eq!(written.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        assert_eq!(fs::remove_file(other.join("file")).unwrap_err().kind(), ErrorKind::PermissionDenied);
    };
    confined(std::slice::from_ref(&own), work);
}

#[test]
fn of_the_capabilities_one_is_left_and_none_comes_back() {
    confined(&[], |_| {
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            assert!(
                caps::read(None, set).unwrap().iter().all(|capability| *capability == Capability::CAP_NET_ADMIN),
                "{set:?}"
            );
        }
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            assert!(caps::read(None, set).unwrap().is_empty(), "{set:?}");
        }
        assert!(caps::raise(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).is_err());
        assert!(nix::sys::prctl::get_no_new_privs().unwrap());
    });
}

#[test]
fn every_capability_that_can_be_given_up_is_where_the_bounding_set_cannot_be_made_smaller() {
    std::thread::scope(|scope| {
        let work = || {
            // As in a container with two capabilities, neither of them CAP_SETPCAP.
            caps::drop(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap();
            caps::drop(None, CapSet::Permitted, Capability::CAP_SETPCAP).unwrap();
            let confined = confine(&[]);
            assert!(confined.refused.iter().any(|refused| refused.starts_with("capabilities")), "{confined:?}");
            for set in [CapSet::Effective, CapSet::Permitted] {
                assert_eq!(caps::read(None, set).unwrap(), [Capability::CAP_NET_ADMIN].into(), "{set:?}");
            }
        };
        scope.spawn(work).join().unwrap();
    });
}

/// What the kernel says of a system call with these arguments.
fn call(number: libc::c_long, first: libc::c_long) -> std::io::Error {
    // SAFETY: without a stack of its own, a structure or a path none of the calls below does anything but fail.
    #[allow(unsafe_code)]
    let returned = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
    assert_eq!(returned, -1, "{number}");
    std::io::Error::last_os_error()
}

#[test]
fn no_call_has_a_second_number_and_no_namespace_comes_with_a_child() {
    confined(&[], |_| {
        let refused = |number, first| assert_eq!(call(number, first).raw_os_error(), Some(libc::EPERM), "{number}");
        // The 32-bit numbers of a kernel with x32: of execveat(2), and of whatever is refused by its own number.
        #[cfg(target_arch = "x86_64")]
        for number in [545, libc::SYS_mount, libc::SYS_bpf] {
            refused(0x4000_0000 | number, 0);
        }
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS] {
            refused(libc::SYS_clone, namespace.into());
        }
        // Its flags are in memory, which a filter does not see; C libraries go on with clone(2) then.
        assert_eq!(call(libc::SYS_clone3, 0).raw_os_error(), Some(libc::ENOSYS));
        for number in [libc::SYS_fspick, libc::SYS_fsconfig, libc::SYS_io_uring_setup, libc::SYS_clock_adjtime] {
            refused(number, 0);
        }
    });
}

#[test]
fn of_the_kernels_parameters_those_of_the_network_are_written_however_little_memory_there_is() {
    let value = |path: &str| fs::read_to_string(path).unwrap();
    let (network, other) = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern");
    let written = |path: &str, text: &str| fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes());
    let (confined_by_now, memory_is_short) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let confined = confine(&[]);
            confined_by_now.wait();
            memory_is_short.wait();
            if !has_landlock(&confined) {
                eprintln!("skipped: {:?}", confined.refused);
                return;
            }
            written(network, &value(network)).unwrap();
            assert_eq!(written(other, &value(other)).unwrap_err().kind(), ErrorKind::PermissionDenied);
        });
        confined_by_now.wait();
        // What nobody holds of /proc goes first then.
        let dropped = written("/proc/sys/vm/drop_caches", "2");
        memory_is_short.wait();
        dropped.unwrap();
    });
}

#[test]
fn what_a_daemon_makes_is_written_by_nobody_else_whatever_the_umask() {
    let folder = tempfile::tempdir().unwrap();
    for (inherited, mode) in [(0o000, 0o755), (0o022, 0o755), (0o027, 0o750), (0o077, 0o700)] {
        let made = folder.path().join(format!("{inherited:o}"));
        std::thread::scope(|scope| {
            let work = || {
                // A thread with a umask of its own.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(inherited));
                let _ = confine(&[folder.path().to_owned()]);
                fs::create_dir(&made).unwrap();
            };
            scope.spawn(work).join().unwrap();
        });
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, mode, "{inherited:o}");
    }
}

#[test]
fn threads_and_sockets_begin_as_before() {
    confined(&[], |_| {
        assert_eq!(std::thread::spawn(|| 1).join().unwrap(), 1);
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    });
}

#[test]
fn a_second_time_costs_nothing_and_refuses_nothing() {
    confined(&[], |first| assert_eq!(confine(&[]), first));
}
