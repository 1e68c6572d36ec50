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

/// Has all threads share one heap; to be called before the second thread starts. By default each has its own, and what one
/// thread has freed serves no other: at 10,000 leases that is a seventh of netd's memory.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, SPARE)] {
        // SAFETY: sets a number of the allocator's own, and no other thread runs yet that allocates.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::mallopt(option, value) };
    }
}

/// Gives back to the system what was freed: a start needs for a moment as much again as what it leaves.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: only memory that nobody has is touched.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
