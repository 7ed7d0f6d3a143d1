//! The words of a token server: what it is asked, and what it answers (distribution's token and OAuth2 specifications).

use hyper::header::HeaderValue;

use super::challenge::Challenge;
use super::{Secret, header};

/// Largest answer that is read (security-bar.md R32).
pub(in crate::image) const MAX_ANSWER: usize = 1024 * 1024;
/// Longest scope that is taken from a challenge.
const MAX_SCOPE: usize = 1024;
/// How this client calls itself where OAuth2 wants a name.
const CLIENT: &str = "cove";

/// What a registry wants a token for, and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Wanted {
    /// URL of the token server, as the registry gave it.
    pub(in crate::image) realm: String,
    service: Option<String>,
    scope: String,
}

impl Wanted {
    /// What `challenge` asks for; without a scope it is to pull `repository`. None: it names no realm.
    pub(super) fn new(challenge: &Challenge, repository: &str) -> Option<Self> {
        let scope = challenge.parameter("scope").filter(|scope| scope.len() <= MAX_SCOPE);
        Some(Self {
            realm: challenge.parameter("realm")?.to_owned(),
            service: challenge.parameter("service").map(str::to_owned),
            scope: scope.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned),
        })
    }

    /// For the query of a GET. Several scopes are several parameters there.
    pub(in crate::image) fn query(&self) -> String {
        let service = self.service.iter().map(|service| format!("service={}", encoded(service)));
        let scopes = self.scope.split(' ').filter(|scope| !scope.is_empty());
        let scopes = scopes.map(|scope| format!("scope={}", encoded(scope)));
        service.chain(scopes).collect::<Vec<_>>().join("&")
    }

    /// For the body of a POST that trades a refresh token for a token.
    pub(in crate::image) fn form(&self, refresh: &Secret) -> String {
        format!(
            "grant_type=refresh_token&client_id={CLIENT}&service={}&scope={}&refresh_token={}",
            encoded(self.service.as_deref().unwrap_or_default()),
            encoded(&self.scope),
            encoded(refresh.expose())
        )
    }
}

/// Everything but the unreserved characters of RFC 3986 section 2.3.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The header that the answer of a token server gives. The reason of a refusal holds nothing of it.
pub(in crate::image) fn parse(answer: &[u8]) -> Result<HeaderValue, &'static str> {
    #[derive(serde::Deserialize)]
    struct Raw {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
    }
    let raw: Raw =
        serde_json::from_slice(answer).map_err(|_| "the token server's answer is no JSON object")?;
    let token = raw.token.filter(|token| !token.is_empty()).or(raw.access_token);
    let token = token.filter(|token| !token.is_empty()).ok_or("the token server's answer holds no token")?;
    header("Bearer", &token).ok_or("the token server's token holds bytes that a header cannot hold")
}

#[cfg(test)]
mod tests {
    use super::super::challenge;
    use super::*;

    fn wanted(header: &str) -> Option<Wanted> {
        Wanted::new(&challenge::parse(header)[0], "library/a")
    }

    #[test]
    fn a_token_is_asked_for_what_the_challenge_says() {
        let table = [
            (
                r#"Bearer realm="https://t",service="r.io:5000",scope="repository:a b:pull repository:c:pull""#,
                "service=r.io%3A5000&scope=repository%3Aa&scope=b%3Apull&scope=repository%3Ac%3Apull",
            ),
            (r#"Bearer realm="https://t""#, "scope=repository%3Alibrary%2Fa%3Apull"),
            (
                r#"Bearer realm="https://t",service="a&b=c""#,
                "service=a%26b%3Dc&scope=repository%3Alibrary%2Fa%3Apull",
            ),
        ];
        for (header, query) in table {
            assert_eq!(wanted(header).unwrap().query(), query, "{header}");
        }
        let long = format!(r#"Bearer realm="https://t",scope="{}""#, "x".repeat(2000));
        assert_eq!(wanted(&long).unwrap().query(), "scope=repository%3Alibrary%2Fa%3Apull");
        assert_eq!(wanted(r#"Bearer service="x""#), None);
        assert_eq!(
            wanted(r#"Bearer realm="https://t",service="s""#).unwrap().form(&"a+b&c".into()),
            "grant_type=refresh_token&client_id=cove&service=s&scope=repository%3Alibrary%2Fa%3Apull&refresh_token=a%2Bb%26c"
        );
    }

    #[test]
    fn answers_are_read_and_never_shown() {
        for (answer, token) in [
            (r#"{"token":"a","access_token":"b","expires_in":60}"#, "Bearer a"),
            (r#"{"access_token":"b"}"#, "Bearer b"),
            (r#"{"token":"","access_token":"b"}"#, "Bearer b"),
        ] {
            let header = parse(answer.as_bytes()).unwrap();
            assert!(header.is_sensitive());
            assert_eq!(header.to_str().unwrap(), token);
        }
        for answer in
            [r#"{"token":"secret\n"}"#, r#"{"token":7,"secret":1}"#, "secret", "{}", r#"{"token":""}"#]
        {
            let reason = parse(answer.as_bytes()).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
