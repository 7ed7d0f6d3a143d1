//! Versions of the CNI specification, in their order.

use std::fmt;

/// A version that Cove speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0 and 0.3.1 differ in nothing but a mistake in the text.
    V0_3_0,
    /// Results with interfaces, chains.
    V0_3_1,
    /// CHECK, and results handed to DEL.
    V0_4_0,
    /// Addresses without a family beside them.
    V1_0_0,
    /// STATUS and GC.
    V1_1_0,
}

impl Version {
    /// All, the oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As it is written in configurations and results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// None for one that Cove does not speak.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// Plugins know the verb CHECK, and are handed the result of ADD with DEL (spec 0.4.0, "CNI Operations").
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Plugins know the verbs STATUS and GC (spec 1.1.0, "CNI Operations").
    pub fn has_status_and_gc(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn versions_are_in_order_and_know_their_verbs() {
        assert!(Version::ALL.is_sorted());
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        for unknown in ["", "0.2.0", "1.2.0", "1.1", "v1.1.0"] {
            assert_eq!(Version::parse(unknown), None, "{unknown}");
        }
        let with = |has: fn(Version) -> bool| Version::ALL.into_iter().filter(|v| has(*v)).count();
        assert_eq!((with(Version::has_check), with(Version::has_status_and_gc)), (3, 1));
    }
}
