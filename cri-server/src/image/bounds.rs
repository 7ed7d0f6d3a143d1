//! What one image may cost before a byte of it is unpacked (security-bar.md R28). Each error names the key of the
//! configuration that was exceeded; what a layer may cost is [`cove_layer::Limits`].

/// Limits of one pull, and of an archive. The defaults hold for every image that we know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a manifest, an index or a config. Registries refuse more than 4 MiB.
    pub document_bytes: usize,
    /// How deep indexes may lie in each other.
    pub index_depth: usize,
    /// Entries of one index.
    pub index_entries: usize,
    /// Documents that an index may lead to: it can name many that do not say for which machine they are (A40).
    pub documents: usize,
    /// Layers of an image; the field's builders stop at 127.
    pub layers: usize,
    /// Bytes of a layer as it is sent: the same bound as for its unpacked form, since it never shrinks by much.
    pub blob_bytes: u64,
    /// Redirects of one request.
    pub redirects: usize,
    /// Members of an archive that is imported, directories and links among them.
    pub archive_entries: usize,
    /// Bytes of members of an archive that are put by until it is known what they are: each is at most as large as a
    /// document may be.
    pub archive_spool_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            document_bytes: 4 * 1024 * 1024,
            index_depth: 4,
            index_entries: 1024,
            documents: 16,
            layers: 127,
            blob_bytes: 64 << 30,
            redirects: 10,
            archive_entries: 16_384,
            archive_spool_bytes: 4 << 30,
        }
    }
}
