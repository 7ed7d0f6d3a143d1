//! How a host is reached, as an administrator sets it: whom to trust, who to be, how long to dial.

use std::time::Duration;

use cove_layer::{Algorithm, Digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate with its chain, and the key that proves it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::image) struct Identity {
    /// The certificate first.
    pub(in crate::image) chain: Vec<CertificateDer<'static>>,
    /// Prints as nothing.
    pub(in crate::image) key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// How a host is reached. Without anything set: as every host is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::image) struct Access {
    /// Trusted beside the system's authorities.
    pub(in crate::image) roots: Vec<CertificateDer<'static>>,
    /// Shown to a server that asks for it.
    pub(in crate::image) identity: Option<Identity>,
    /// Whoever answers is believed.
    pub(in crate::image) skip_verify: bool,
    /// How long connecting may take.
    pub(in crate::image) dial: Option<Duration>,
}

impl Access {
    /// Whether anything is set that only TLS knows.
    pub(in crate::image) fn is_of_tls(&self) -> bool {
        !self.roots.is_empty() || self.identity.is_some() || self.skip_verify
    }

    /// For another host that this one leads to: who is trusted stays, who we are does not go along.
    pub(in crate::image) fn elsewhere(&self) -> Self {
        Self { identity: None, ..self.clone() }
    }

    /// What tells two from each other, without keeping the key.
    pub(super) fn fingerprint(&self) -> Digest {
        let mut bytes = Vec::new();
        let mut add = |tag: u8, part: &[u8]| {
            bytes.push(tag);
            bytes.extend_from_slice(&part.len().to_le_bytes());
            bytes.extend_from_slice(part);
        };
        self.roots.iter().for_each(|root| add(0, root));
        if let Some(identity) = &self.identity {
            identity.chain.iter().for_each(|certificate| add(1, certificate));
            add(2, identity.key.secret_der());
        }
        add(3, &[u8::from(self.skip_verify)]);
        add(4, &self.dial.unwrap_or_default().as_nanos().to_le_bytes());
        Digest::of(Algorithm::Sha256, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_tells_two_apart_and_an_identity_stays_at_home() {
        let with = |set: &dyn Fn(&mut Access)| {
            let mut access = Access::default();
            set(&mut access);
            access
        };
        let identity = || Identity {
            chain: vec![CertificateDer::from(vec![1])],
            key: PrivateKeyDer::Pkcs8(vec![2_u8].into()),
        };
        let all = [
            with(&|_| ()),
            with(&|access| access.roots.push(CertificateDer::from(vec![1]))),
            with(&|access| access.identity = Some(identity())),
            with(&|access| access.skip_verify = true),
            with(&|access| access.dial = Some(Duration::from_secs(1))),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().map(Access::fingerprint).collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all[2].is_of_tls() && !all[2].elsewhere().is_of_tls() && all[1].elsewhere() == all[1]);
    }
}
