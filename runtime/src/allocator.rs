//! What the process's allocator keeps.

/// Threads of a daemon that are there for a burst of work: with an arena each, which is glibc's default up to 8 a CPU,
/// a busy hour leaves tens of megabytes that nobody uses.
const ARENAS: u16 = 2;

/// Keeps the allocator small for a process with many short-lived threads. Before the first of them. False where the
/// allocator refuses, which costs memory and nothing else.
pub fn keep_small() -> bool {
    cove_sys::limit_arenas(ARENAS)
}
