//! The allocator of the C library, for daemons of few threads.
//!
//! Invariant: only how much memory a process needs depends on it.

/// Has all threads share one heap; to be called before the second thread starts. By default each has its own, and what one
/// thread has freed serves no other: at 10,000 leases that is a seventh of netd's memory.
pub fn share() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: sets a number of the allocator's own, and no other thread runs yet that allocates.
        #[allow(unsafe_code)]
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
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
