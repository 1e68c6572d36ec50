//! Room where etcd, kubelet and containerd write.
//!
//! Pure. Invariant: a kubelet evicts below 10 % (`nodefs.available`) and 5 % of files (`nodefs.inodesFree`); etcd ends its writes
//! at once.

use daemon::doctor::Trouble;

use super::facts::{Case, Disk};
use crate::topology::Role;

const GIB: u64 = 1 << 30;

/// What etcd takes by itself (`--quota-backend-bytes`).
const ETCD: u64 = 2 * GIB;

/// Folders with who writes there.
pub(crate) const PLACES: [(&str, Role); 3] =
    [("/var/lib/etcd", Role::Etcd), ("/var/lib/kubelet", Role::Node), ("/var/lib/containerd", Role::Node)];

/// Whether there is room.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let places = PLACES.into_iter().filter(|(_, role)| case.is(*role));
    let disks =
        places.filter_map(|(folder, role)| Some((case.facts.disks.iter().find(|disk| disk.folder == folder)?, role)));
    disks.filter_map(|(disk, role)| trouble(disk, role)).collect()
}

fn trouble(disk: &Disk, role: Role) -> Option<Trouble> {
    let Disk { folder, free, size, free_files, files } = disk;
    let share = |part: u64, whole: u64| part.saturating_mul(100).checked_div(whole).unwrap_or(100);
    let fix = format!("find what takes the room: du -xsh {folder}/.. ; or mount a larger file system there");
    if role == Role::Etcd {
        let found = format!(
            "{folder} has {} MiB free, and a member of etcd grows to 2 GiB: it stops when the disk is full",
            free >> 20
        );
        return (*free < ETCD).then(|| Trouble::problem(found, fix));
    }
    if share(*free, *size) < 15 {
        let found = format!(
            "{folder} has {} % free: the kubelet throws Pods out below 10 %, of images below 15 %",
            share(*free, *size)
        );
        return Some(Trouble::problem(found, fix));
    }
    // Some file systems (btrfs) do not count files.
    if *files > 0 && share(*free_files, *files) < 5 {
        let found = format!(
            "{folder} has room for {} % more files: the kubelet throws Pods out below 5 %",
            share(*free_files, *files)
        );
        return Some(Trouble::problem(found, format!("find what has so many files: du --inodes -xs {folder}/..")));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    #[test]
    fn a_disk_that_is_nearly_full_of_bytes_or_of_files_is_found() {
        let case = |folder: &str, free, free_files| {
            let mut case = Case::default();
            let disk = Disk { folder: folder.into(), free, size: 100 * GIB, free_files, files: 1000 };
            case.facts.disks = vec![disk];
            case
        };
        assert!(said(judge(&case("/var/lib/etcd", GIB, 900))).contains("/var/lib/etcd has 1024 MiB free"));
        assert_eq!(said(judge(&case("/var/lib/etcd", GIB, 900).of_host("hdss7-11"))), "", "no member there");
        assert!(said(judge(&case("/var/lib/kubelet", 14 * GIB, 900))).contains("/var/lib/kubelet has 14 % free"));
        assert!(said(judge(&case("/var/lib/containerd", 50 * GIB, 40))).contains("room for 4 % more files"));
        assert_eq!(said(judge(&case("/var/lib/kubelet", 50 * GIB, 900))), "");
    }
}
