//! The allocator's memory.

/// Gives memory that was freed back to the kernel, as far as whole pages of it are free (malloc_trim(3)). For a
/// process that lives long and is idle after a burst.
pub fn trim() {
    // SAFETY: malloc_trim looks at the allocator's own free lists, under its lock, and leaves what is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Bounds how many arenas the allocator makes for the process's threads (mallopt(3), `M_ARENA_MAX`), each of which keeps
/// what was freed in it. Before the first thread is made; false if the allocator refuses.
pub fn limit_arenas(most: u16) -> bool {
    // SAFETY: mallopt sets one number of the allocator, under its lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::from(most)) == 1 }
}
