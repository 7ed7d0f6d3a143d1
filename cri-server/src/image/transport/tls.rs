//! TLS to registries: whom to believe, and in words why somebody was not believed.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};

use super::access::Access;

/// The client side of TLS 1.2 and 1.3 for a host that is reached so.
pub(super) fn config(access: &Access) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    for root in &access.roots {
        roots.add(root.clone()).map_err(|error| format!("a certificate of `ca` is not usable: {error}"))?;
    }
    let verifier: Arc<dyn ServerCertVerifier> = if access.skip_verify {
        Arc::new(Anybody { provider: provider.clone() })
    } else if roots.is_empty() {
        let why: Vec<String> = native.errors.iter().map(ToString::to_string).collect();
        return Err(format!(
            "the system has no certificate authorities ({}) and `ca` names none",
            why.join("; ")
        ));
    } else {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| format!("the certificate authorities are not usable: {error}"))?;
        Arc::new(Named { inner, named: access.roots.clone() })
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match &access.identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| format!("the client certificate and its key are not usable: {error}")),
    }
}

/// What webpki says of a server's certificate, and one thing more: a certificate that the administrator named in `ca` is
/// believed as itself. `openssl req -x509` marks a self-signed certificate as an authority's, and webpki takes none of
/// those from a server; registries with such a certificate are many, and other clients take it.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now);
        match verified {
            // webpki looks at the time before it looks at this, so an expired one does not come here.
            Err(error) if is_authority(&error) && self.named.contains(certificate) => {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `skip_verify`: any certificate, but its key must be there.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether webpki refused a certificate only since it is one of an authority: it has no name for that in rustls.
fn is_authority(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.0.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}

/// What an administrator can do about a failed handshake, if `error` or what it wraps is one.
pub(super) fn explained(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut inner = error;
    // An `io::Error` does not give what it wraps as its source, and one may wrap another.
    while let Some(wrapper) = inner.downcast_ref::<io::Error>() {
        inner = wrapper.get_ref()?;
    }
    let error = inner.downcast_ref::<Error>()?;
    match error {
        error if is_authority(error) => Some(UNTRUSTED),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(UNTRUSTED),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some("its certificate has expired")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some("its certificate is not valid yet, or the clock of this node is wrong"),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("its certificate is for another name"),
        Error::InvalidMessage(_) => {
            Some("what answers is not TLS: a registry of plain http must be configured as such")
        }
        Error::PeerIncompatible(_)
        | Error::AlertReceived(AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure) => {
            Some("it offers no version of TLS from 1.2 on, or no cipher, that is accepted")
        }
        Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::BadCertificate) => {
            Some("it wants a client certificate: `client` in hosts.toml names one")
        }
        _ => None,
    }
}

const UNTRUSTED: &str = "its certificate is self-signed, or of an authority that is not trusted: `ca` in hosts.toml names \
                         one that is";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_handshakes_are_told_in_words() {
        let table = [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "self-signed"),
            (Error::InvalidCertificate(CertificateError::Expired), "has expired"),
            (Error::InvalidCertificate(CertificateError::NotValidYet), "not valid yet"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "another name"),
            (Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "not TLS"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "1.2"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "`client`"),
        ];
        for (error, expected) in table {
            assert!(explained(&error).unwrap().contains(expected), "{error}");
            assert!(explained(&io::Error::other(io::Error::other(error))).unwrap().contains(expected));
        }
        assert_eq!(explained(&io::Error::other("x")), None);
        assert_eq!(explained(&io::Error::from_raw_os_error(111)), None);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let access = Access { roots: vec![CertificateDer::from(vec![1, 2, 3])], ..Access::default() };
        assert!(config(&access).unwrap_err().contains("`ca`"));
        assert!(config(&Access { skip_verify: true, ..Access::default() }).is_ok());
    }
}
