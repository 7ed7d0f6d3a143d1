//! The allocator's memory.

/// Gives memory that was freed back to the kernel, as far as whole pages of it are free (malloc_trim(3)). For a
/// process that lives long and is idle after a burst.
pub fn trim() {
    // SAFETY: malloc_trim looks at the allocator's own free lists, under its lock, and leaves what is in use.
    unsafe { libc::malloc_trim(0) };
}
