//! `Arena`: memory for a process that serves one request and ends.
//!
//! The CNI plugin lives for two milliseconds. A general allocator spends a tenth of that on getting pages, one fault after
//! the other, and on giving them back. This one takes its memory in one piece that is populated at once (mmap(2),
//! MAP_POPULATE) and gives it out from one end; what does not fit any more, or is large, goes to the system's allocator.
//!
//! Invariants: no byte belongs to two allocations at a time, for memory that was given back is given out again only when
//! nothing was given out behind it; the process never has more than [`SIZE`] bytes for allocations that it no longer uses.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Bytes that are taken from the kernel at once: what an ADD allocates in its whole life, and half of it again.
pub const SIZE: usize = 96 * 1024;

/// Allocations from this size on, in bytes, are left to the system: a buffer for the largest answer is mostly never touched.
const LARGE: usize = 16 * 1024;

/// The allocator, for `#[global_allocator]`.
#[derive(Debug)]
pub struct Arena {
    /// Where the piece begins; null before the first allocation and when the kernel had none.
    base: AtomicPtr<u8>,
    /// How many of its bytes are handed out.
    used: AtomicUsize,
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

impl Arena {
    /// An arena that has nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { base: AtomicPtr::new(ptr::null_mut()), used: AtomicUsize::new(0) }
    }

    /// The piece; null when the kernel has none to give.
    fn base(&self) -> *mut u8 {
        let base = self.base.load(Ordering::Acquire);
        if base.is_null() { self.begin() } else { base }
    }

    #[cold]
    fn begin(&self) -> *mut u8 {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        #[allow(unsafe_code)]
        let piece = unsafe { libc::mmap(ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        if piece == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        let piece: *mut u8 = piece.cast();
        match self.base.compare_exchange(ptr::null_mut(), piece, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => piece,
            Err(theirs) => {
                // SAFETY: the mapping was made above and nobody else has seen it.
                #[allow(unsafe_code)]
                unsafe {
                    libc::munmap(piece.cast(), SIZE);
                }
                theirs
            }
        }
    }

    /// Hands out memory; null when it must come from the system.
    fn take(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            return ptr::null_mut();
        }
        let base = self.base();
        if base.is_null() {
            return base;
        }
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            // The piece begins at a page, so that alignment of the offset is alignment of the address up to a page.
            let Some(start) = used.checked_next_multiple_of(layout.align()) else { return ptr::null_mut() };
            let end = start.saturating_add(layout.size());
            if end > SIZE || layout.align() > 4096 {
                return ptr::null_mut();
            }
            match self.used.compare_exchange_weak(used, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return base.wrapping_add(start),
                Err(now) => used = now,
            }
        }
    }

    /// Where in the piece `memory` is; `None` for memory of the system's.
    fn offset(&self, memory: *mut u8) -> Option<usize> {
        let base = self.base.load(Ordering::Acquire);
        let offset = memory.addr().checked_sub(base.addr())?;
        (!base.is_null() && offset < SIZE).then_some(offset)
    }

    /// Makes the allocation of `size` bytes at `offset` one of `wanted` bytes if it is the last one.
    fn resize_last(&self, offset: usize, size: usize, wanted: usize) -> bool {
        let (end, wanted) = (offset.saturating_add(size), offset.saturating_add(wanted));
        wanted <= SIZE && self.used.compare_exchange(end, wanted, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

// SAFETY: `take` gives out ranges of the piece that do not overlap, because each moves `used` past its own end in one step;
// `used` goes back only over the last range, by its owner. Everything else is the system allocator's, which the address
// shows, for the piece is never given back.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = self.take(layout);
        // SAFETY: the caller's promises about `layout` are passed on.
        if memory.is_null() { unsafe { System.alloc(layout) } } else { memory }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let memory = self.take(layout);
        if memory.is_null() {
            // SAFETY: the caller's promises about `layout` are passed on.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: the range was handed out just now with this size; it may have been used before.
        unsafe { memory.write_bytes(0, layout.size()) };
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match self.offset(memory) {
            Some(offset) => drop(self.resize_last(offset, layout.size(), 0)),
            // SAFETY: memory outside the piece is the system allocator's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(memory) else {
            // SAFETY: memory outside the piece is the system allocator's.
            return unsafe { System.realloc(memory, layout, size) };
        };
        if size < LARGE && self.resize_last(offset, layout.size(), size) {
            return memory;
        }
        // SAFETY: the alignment is that of a valid layout, and the caller promises that the size fits.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: as above; both ranges are valid for the smaller size and do not overlap.
        unsafe {
            let moved = self.alloc(wanted);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(memory, moved, layout.size().min(size));
                self.dealloc(memory, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "an allocator is called as the compiler calls it")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A live allocation, filled with `mark`.
    struct Live {
        memory: *mut u8,
        layout: Layout,
        mark: u8,
    }

    impl Live {
        fn is_whole(&self) -> bool {
            // SAFETY: the allocation is live and was filled.
            unsafe { std::slice::from_raw_parts(self.memory, self.layout.size()) }.iter().all(|byte| *byte == self.mark)
        }
    }

    fn fill(live: &Live) {
        assert!(!live.memory.is_null() && live.memory.addr().is_multiple_of(live.layout.align()));
        // SAFETY: the allocation is live and of this size.
        unsafe { live.memory.write_bytes(live.mark, live.layout.size()) };
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_allocation_disturbs_another(
            steps in proptest::collection::vec((0_u8..4, 1_usize..20_000, 0_u32..13, any::<usize>()), 1..200)
        ) {
            let arena = Arena::new();
            let mut all: Vec<Live> = Vec::new();
            for (number, (what, size, align, pick)) in steps.into_iter().enumerate() {
                let mark = u8::try_from(number % 251).unwrap();
                let layout = Layout::from_size_align(size, 1 << align).unwrap();
                // SAFETY: layouts are valid and not empty, and memory is given back once, with its own layout.
                unsafe {
                    match (what, all.is_empty()) {
                        (0, false) => {
                            let live = all.swap_remove(pick % all.len());
                            arena.dealloc(live.memory, live.layout);
                        }
                        (1, false) => {
                            let at = pick % all.len();
                            let live = &mut all[at];
                            let kept = live.layout.size().min(size);
                            live.memory = arena.realloc(live.memory, live.layout, size);
                            live.layout = Layout::from_size_align(size, live.layout.align()).unwrap();
                            prop_assert!(std::slice::from_raw_parts(live.memory, kept).iter().all(|b| *b == live.mark));
                            fill(live);
                        }
                        (2, _) => {
                            let memory = arena.alloc_zeroed(layout);
                            prop_assert!(std::slice::from_raw_parts(memory, size).iter().all(|byte| *byte == 0));
                            all.push(Live { memory, layout, mark });
                            fill(all.last().unwrap());
                        }
                        _ => {
                            all.push(Live { memory: arena.alloc(layout), layout, mark });
                            fill(all.last().unwrap());
                        }
                    }
                }
                prop_assert!(all.iter().all(Live::is_whole));
            }
            for live in all {
                // SAFETY: as above.
                unsafe { arena.dealloc(live.memory, live.layout) };
            }
            end(&arena);
        }
    }

    /// Gives the piece back, which a process never does.
    fn end(arena: &Arena) {
        let base = arena.base.load(Ordering::Acquire);
        if !base.is_null() {
            // SAFETY: nothing of the piece is in use any more.
            unsafe { libc::munmap(base.cast(), SIZE) };
        }
    }

    #[test]
    fn memory_given_back_in_reverse_order_is_used_again() {
        let arena = Arena::new();
        let layout = Layout::from_size_align(1000, 8).unwrap();
        for _ in 0..1000 {
            // SAFETY: as in the property above.
            unsafe {
                let memory = arena.alloc(layout);
                assert!(arena.offset(memory).is_some());
                arena.dealloc(memory, layout);
            }
        }
        end(&arena);
    }

    #[test]
    fn threads_get_memory_of_their_own() {
        let arena = Arena::new();
        let layout = Layout::from_size_align(40, 8).unwrap();
        std::thread::scope(|scope| {
            for mark in 1..=4 {
                let arena = &arena;
                scope.spawn(move || {
                    for _ in 0..500 {
                        // SAFETY: as in the property above.
                        let live = Live { memory: unsafe { arena.alloc(layout) }, layout, mark };
                        fill(&live);
                        assert!(live.is_whole());
                        // SAFETY: as in the property above.
                        unsafe { arena.dealloc(live.memory, live.layout) };
                    }
                });
            }
        });
        end(&arena);
    }
}
