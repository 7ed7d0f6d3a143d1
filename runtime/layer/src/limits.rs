//! What one layer may cost (R28). Each error names the field that was exceeded.

/// Limits of one layer. The defaults hold for every image that we know of and bound what a hostile one can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar, headers included.
    pub size: u64,
    /// Uncompressed bytes for each compressed byte, once [`Limits::expansion_free`] bytes are out.
    pub expansion: u64,
    /// Uncompressed bytes that may come out at any ratio: a small image of zeros is harmless.
    pub expansion_free: u64,
    /// Entries, and directories made without one.
    pub entries: u64,
    /// Bytes of a path or link target; the kernel's PATH_MAX without its NUL.
    pub path: usize,
    /// Bytes of one name in a path; the kernel's NAME_MAX.
    pub component: usize,
    /// Bytes of all extension headers (PAX, GNU long names) before one entry.
    pub headers: u64,
    /// Bytes of one PAX record.
    pub pax_record: usize,
    /// Bytes of one extended attribute's value; the kernel's XATTR_SIZE_MAX.
    pub xattr_value: usize,
    /// Bytes of the paths of directories that no entry names: they are kept in memory.
    pub implicit: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size: 64 << 30,
            expansion: 1000,
            expansion_free: 1 << 30,
            entries: 5_000_000,
            path: 4095,
            component: 255,
            headers: 1 << 20,
            pax_record: 1 << 20,
            xattr_value: 64 << 10,
            implicit: 2 << 20,
        }
    }
}
