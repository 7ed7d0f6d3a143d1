//! `WWW-Authenticate`: what a server asks for (RFC 9110 section 11.6.1). Hostile text: what cannot be read ends the list.

/// Longest header that is looked at.
const MAX_HEADER: usize = 8 * 1024;
/// Most challenges that are looked at.
const MAX_CHALLENGES: usize = 16;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Challenge {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Whether this is of `scheme`, given in lower case.
    pub(super) fn is(&self, scheme: &str) -> bool {
        self.scheme == scheme
    }

    /// The first value of a parameter that is not empty.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }
}

/// The challenges of one header. A list of them and a list of parameters are both parted by commas: a word without a
/// `=` behind it begins the next challenge.
pub(in crate::image) fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    if header.len() > MAX_HEADER {
        return found;
    }
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() || found.len() > MAX_CHALLENGES {
            return found;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        match (spaced.strip_prefix('='), found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let Some((value, after)) = read_value(value.trim_start_matches([' ', '\t'])) else {
                    return found;
                };
                challenge.parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => return found,
            (None, _) => {
                found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

/// A token of RFC 9110 section 5.6.2 at the start, and what follows it.
fn token(text: &str) -> (&str, &str) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
    text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()))
}

/// A quoted string, or the bytes up to the next comma or space.
fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([',', ' ', '\t']).unwrap_or(text.len()));
        return Some((value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Vec<String> {
        let show = |challenge: Challenge| {
            let parameters: Vec<String> =
                challenge.parameters.iter().map(|(key, value)| format!("{key}<{value}>")).collect();
            format!("{} {}", challenge.scheme, parameters.join(" ")).trim().to_owned()
        };
        parse(header).into_iter().map(show).collect()
    }

    #[test]
    fn challenges_are_told_apart_from_their_parameters() {
        let table: [(&str, &[&str]); 13] = [
            (
                r#"Bearer realm="https://auth.io/token?x=1,2",service="r.io",scope="repository:a/b:pull""#,
                &["bearer realm<https://auth.io/token?x=1,2> service<r.io> scope<repository:a/b:pull>"],
            ),
            (
                r#"Basic realm="a", Bearer realm="b" , SERVICE = c"#,
                &["basic realm<a>", "bearer realm<b> service<c>"],
            ),
            (r#"BASIC realm="say \"hi\" \\""#, &[r#"basic realm<say "hi" \>"#]),
            ("Negotiate", &["negotiate"]),
            ("Negotiate, Basic realm=x", &["negotiate", "basic realm<x>"]),
            ("Negotiate YWJj==, Basic realm=x", &["negotiate yWJj<=>", "basic realm<x>"]),
            ("Bearer", &["bearer"]),
            ("", &[]),
            (" ,, ", &[]),
            ("realm=x", &[]),
            (r#"Bearer realm="never closed"#, &["bearer"]),
            (r#"Bearer realm="x\"#, &["bearer"]),
            ("Bearer realm=\u{e9}", &["bearer realm<\u{e9}>"]),
        ];
        for (header, expected) in table {
            let expected: Vec<String> = expected.iter().map(|text| text.replace("yWJj", "ywjj")).collect();
            assert_eq!(read(header), expected, "{header}");
        }
    }

    #[test]
    fn hostile_headers_end_soon() {
        assert!(parse(&"Bearer realm=x, ".repeat(10_000)).is_empty());
        assert!(parse(&"a ".repeat(4_000)).len() <= MAX_CHALLENGES + 1);
        assert!(parse(&"\"".repeat(8_000)).is_empty());
    }

    #[test]
    fn an_empty_parameter_is_none() {
        let challenge = &parse(r#"Bearer scope="",scope="a""#)[0];
        assert_eq!((challenge.parameter("scope"), challenge.parameter("realm")), (Some("a"), None));
        assert!(challenge.is("bearer"));
    }
}
