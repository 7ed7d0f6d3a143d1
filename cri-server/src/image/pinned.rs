//! Names of images that are never collected, as an administrator lists them: whole, with `*` at the end, or with `*` on both
//! sides, as the field has them. Compared with the names that an image has in the store.

/// The patterns of `images.pinned`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pinned(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Infix(String),
}

/// Whether a pattern has a form that is understood.
pub(crate) fn is_pattern(text: &str) -> bool {
    pattern(text).is_some()
}

fn pattern(text: &str) -> Option<Pattern> {
    let has_none = |text: &str| !text.contains('*');
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text.trim().is_empty() => None,
        (Some(rest), _) => {
            let inner = rest.strip_suffix('*').filter(|inner| has_none(inner) && !inner.is_empty())?;
            Some(Pattern::Infix(inner.to_owned()))
        }
        (None, Some(start)) => has_none(start).then(|| Pattern::Prefix(start.to_owned())),
        (None, None) => has_none(text).then(|| Pattern::Exact(text.to_owned())),
    }
}

impl Pinned {
    /// The patterns, which were checked when the configuration was read.
    pub(super) fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().filter_map(|text| pattern(text)).collect())
    }

    /// Whether one of these names is listed.
    pub(super) fn names_one_of<'a>(&self, mut names: impl Iterator<Item = &'a String>) -> bool {
        names.any(|name| {
            self.0.iter().any(|pattern| match pattern {
                Pattern::Exact(text) => name == text,
                Pattern::Prefix(text) => name.starts_with(text.as_str()),
                Pattern::Infix(text) => name.contains(text.as_str()),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole_or_begin_with_or_hold_a_pattern() {
        let table = [
            ("r.io/a:1", "r.io/a:1", true),
            ("r.io/a:1", "r.io/a:12", false),
            ("r.io/a*", "r.io/a:12", true),
            ("r.io/a*", "x/r.io/a:12", false),
            ("*pause*", "registry.k8s.io/pause:3.10", true),
            ("*pause*", "registry.k8s.io/paus:3.10", false),
        ];
        for (text, name, expected) in table {
            let pinned = Pinned::new(&[text.to_owned()]);
            assert_eq!(pinned.names_one_of([name.to_owned()].iter()), expected, "{text} {name}");
        }
        for bad in ["", " ", "*", "**", "*a", "a*b", "*a*b*"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
