//! A token server for a registry that wants tokens: it signs what distribution's token specification asks for, by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::Outcome;
use crate::certificate::{self, Certificate, openssl};
use crate::server::{Answer, Asked, Server};

/// Who issues tokens, as the registry knows it.
const ISSUER: &str = "cove-e2e";
/// Whom they are for.
const SERVICE: &str = "registry.e2e";

/// A token server, and the key that it signs with.
#[derive(Debug)]
pub struct Tokens {
    /// Answers at `/token`.
    pub server: Server,
    signer: Signer,
}

#[derive(Debug, Clone)]
struct Signer {
    identity: Certificate,
    directory: PathBuf,
}

impl Tokens {
    /// Gives tokens that pull to whoever has this `Authorization` or this refresh token; to others tokens that do nothing.
    pub fn start(directory: &Path, authorization: &str, refresh: &str) -> Outcome<Self> {
        let identity = certificate::self_signed(directory, "issuer", &["rsa:2048"])?;
        let signer = Signer { identity, directory: directory.to_owned() };
        let (own, authorization) = (signer.clone(), authorization.to_owned());
        let refresh = format!("refresh_token={refresh}");
        let server = Server::start("127.0.0.1", move |asked: &Asked| {
            let known = asked.header("authorization") == Some(&authorization)
                || asked.method == "POST" && asked.body.split('&').any(|field| field == refresh);
            let text = format!("{}&{}", asked.target, asked.body);
            let scope = text.split(['?', '&']).find_map(|field| field.strip_prefix("scope="));
            let scope = scope.unwrap_or_default().replace("%3A", ":").replace("%2F", "/");
            let repository = scope.split(':').nth(1).filter(|_| known).unwrap_or_default().to_owned();
            match own.sign(&repository) {
                Ok(token) => Answer::Whole(200, Vec::new(), json!({"token": token}).to_string().into_bytes()),
                Err(error) => Answer::Whole(500, Vec::new(), error.to_string().into_bytes()),
            }
        })?;
        Ok(Self { server, signer })
    }

    /// The registry's setting.
    pub fn auth(&self) -> String {
        format!(
            "auth: {{token: {{realm: 'http://{}/token', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}}}\n",
            self.server.address,
            self.signer.identity.certificate.display()
        )
    }

    /// A token that pulls one repository.
    pub fn token(&self, repository: &str) -> Outcome<String> {
        self.signer.sign(repository)
    }
}

impl Signer {
    /// A JSON web token, by RS256 (RFC 7515). Without a repository it permits nothing.
    fn sign(&self, repository: &str) -> Outcome<String> {
        let pem = fs::read_to_string(&self.identity.certificate)?;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let access = if repository.is_empty() {
            json!([])
        } else {
            json!([{"type": "repository", "name": repository, "actions": ["pull"]}])
        };
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": "", "jti": "e2e", "iat": now, "nbf": now - 60, "exp": now + 600,
            "access": access,
        });
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(STANDARD.decode(body)?)]});
        let encoded = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(&claims));
        // A name of its own for each thread that signs.
        let file = self.directory.join(format!("jwt-{:?}", std::thread::current().id()));
        fs::write(&file, &signed)?;
        let key = self.identity.key.to_str().ok_or("a path that is not UTF-8")?;
        let path = file.to_str().ok_or("a path that is not UTF-8")?;
        let signature = openssl(&["dgst", "-sha256", "-sign", key, path])?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
