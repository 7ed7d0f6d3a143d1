//! Why a network operation failed.

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Every address of the range is leased.
    #[error("no address is free in {cidr}: {leased} are leased")]
    Exhausted {
        /// The range.
        cidr: String,
        /// How many.
        leased: usize,
    },
    /// The kernel refused.
    #[error("{doing} {object}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// On which link, address or route.
        object: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// `nft` refused the rules, could not be found, or did not end in time.
    #[error("nft: {0}")]
    Nft(String),
    /// A name of ours that somebody else has taken: it is left as it is.
    #[error("{what} {name:?} is not Cove's: {todo}")]
    Another {
        /// Which kind of object.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do about it.
        todo: String,
    },
    /// A range that cannot be used.
    #[error("pod range {cidr:?}: {reason}")]
    Range {
        /// As configured.
        cidr: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A host port that cannot be had.
    #[error("host port {port}: {reason}")]
    Port {
        /// Protocol, address and number.
        port: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that cannot be one of a table or a link.
    #[error("{what} {name:?}: {reason}")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// As given.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl NetworkError {
    /// The kernel said so, while doing this, with that object.
    pub(super) fn system(
        doing: &'static str,
        object: impl Into<String>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::System { doing, object: object.into(), source: source.into() }
    }
}
