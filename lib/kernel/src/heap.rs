//! The allocator of the C library, for daemons of few threads.
//!
//! Invariant: only how much memory a process needs depends on it.

/// A piece of memory from this size on is the system's own, and goes back to it when it is freed. That is the allocator's first choice;
/// left to itself it raises it to the largest piece that was ever freed, up to 32 MiB, and large pieces leave holes among the small ones.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// Free memory at the heap's end that is kept for what comes next.
#[cfg(target_env = "gnu")]
const SPARE: libc::c_int = 1024 * 1024;

/// While memory is kept, only pieces from this size on are the system's own: the largest that the allocator allows.
#[cfg(target_env = "gnu")]
const LARGE_WHILE_KEPT: libc::c_int = 32 * 1024 * 1024;

/// Has all threads share one heap; to be called before the second thread starts. By default each has its own, and what one
/// thread has freed serves no other: at 10,000 leases that is a seventh of netd's memory.
pub fn share() {
    #[cfg(target_env = "gnu")]
    set(&[(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, SPARE)]);
}

/// From here on nothing that is freed goes back to the system, until [`trim`]: a start frees large pieces again and again, and each page that
/// comes back from the system is a fault and cleared. At 10,000 Services these were two of three faults.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    set(&[(libc::M_MMAP_THRESHOLD, LARGE_WHILE_KEPT), (libc::M_TRIM_THRESHOLD, libc::c_int::MAX)]);
}

/// Gives back to the system what was freed, and large pieces as soon as they are freed from here on: a start needs for a moment as much again
/// as what it leaves.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        set(&[(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, SPARE)]);
        // SAFETY: only memory that nobody has is touched.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

/// Sets numbers of the allocator's own.
#[cfg(target_env = "gnu")]
fn set(options: &[(libc::c_int, libc::c_int)]) {
    for (option, value) in options {
        // SAFETY: the allocator takes its lock and stores one number, which says where memory comes from; other threads that read the one
        // before get memory all the same.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::mallopt(*option, *value) };
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    /// Of this process, so that other tests may be among them: the pages are many.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    /// Fills a large piece of memory again and again; the faults that it costs.
    fn churn() -> u64 {
        let before = faults();
        for round in 0..64_u8 {
            std::hint::black_box(vec![round | 1; 4 << 20]);
        }
        faults() - before
    }

    #[test]
    fn memory_that_is_kept_is_faulted_in_once_and_given_back_by_trim() {
        share();
        let given_back = churn();
        keep();
        let kept = churn();
        trim();
        let again = churn();
        assert!(given_back > 8 * kept && again > 8 * kept, "faults: {given_back}, kept {kept}, behind it {again}");
    }
}
