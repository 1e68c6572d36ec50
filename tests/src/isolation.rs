//! Proof that a machine of the lab is apart from the real one, before anything is written.
//!
//! Invariant: where one of the proofs fails nothing has been written, and the error says what is wrong with this place. In a chroot a
//! thread that enters a mount namespace lands in the namespace's own root, outside the chroot, while paths through `/proc/PID/root` lead
//! into it: mounts would go to one tree and files to the other. With shared propagation a mount would appear in the real machine.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// Proves that the root of this process is the root of its mount namespace.
pub(crate) fn prove_own_root() -> Result<()> {
    let own = File::open("/").context("open /")?;
    let entered = thread::scope(|scope| {
        let entering = scope.spawn(|| {
            let namespace = File::open("/proc/thread-self/ns/mnt").context("open this thread's mount namespace")?;
            unshare(CloneFlags::CLONE_FS).context("give the thread a root folder of its own (needs root)")?;
            setns(&namespace, CloneFlags::CLONE_NEWNS).context("enter the mount namespace (needs root)")?;
            File::open("/").context("open / of the mount namespace")
        });
        entering.join().map_err(|_| anyhow!("the thread that enters the mount namespace panicked"))?
    })?;
    let same = mount_number(&own)? == mount_number(&entered)? && inode(&own)? == inode(&entered)?;
    ensure!(
        same,
        "this process runs in a chroot, where a machine of the lab would write into the real one: start it outside, or enter that \
         root with pivot_root(2), as `systemd-nspawn` and container runtimes do"
    );
    Ok(())
}

/// Proves that no mount of the process `pid` reaches another mount namespace.
pub(crate) fn prove_private_mounts(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/mountinfo");
    let table = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // Optional fields stand between the mount options and a lone `-` (proc_pid_mountinfo(5)).
    let fields =
        |line: &str| line.split(' ').skip(6).take_while(|field| *field != "-").any(|f| f.starts_with("shared:"));
    match table.lines().find(|line| fields(line)) {
        None => Ok(()),
        Some(shared) => bail!("a machine of the lab would share a mount with the real one: {shared}"),
    }
}

/// Proves that the machine of `pid` has file systems of its own at `folders`.
pub(crate) fn prove_own_files(pid: u32, folders: &[&str]) -> Result<()> {
    for folder in folders {
        let inside = PathBuf::from(format!("/proc/{pid}/root{folder}"));
        let device = |path: PathBuf| fs::metadata(&path).with_context(|| format!("look at {}", path.display()));
        let (own, real) = (device(inside)?.dev(), device(PathBuf::from(folder))?.dev());
        ensure!(own != real, "{folder} of a machine of the lab is the real one");
    }
    Ok(())
}

fn inode(file: &File) -> Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The number of the mount that an open file lies on.
fn mount_number(file: &File) -> Result<String> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(|id| id.trim().to_owned())
        .context("no mnt_id in fdinfo")
}
