//! Images on the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::wire;
use super::field::{no_control, required};
use crate::error::Error;
use crate::image::{Auth, FsInfo, Image};

/// The longest reference: 255 letters of a name, 128 of a tag, a host and a digest.
const MAX_REFERENCE: usize = 1024;

/// The image that a request names.
pub(in crate::api) fn reference(spec: Option<wire::ImageSpec>) -> Result<String, Error> {
    let reference = required("image", spec)?.image;
    if reference.is_empty() {
        return Err(Error::invalid("image.image", "must not be empty"));
    }
    if reference.len() > MAX_REFERENCE {
        return Err(Error::invalid("image.image", format!("is longer than {MAX_REFERENCE} bytes")));
    }
    no_control("image.image", &reference)?;
    Ok(reference)
}

/// The filter of ListImages.
pub(in crate::api) fn filter(filter: Option<wire::ImageFilter>) -> Option<String> {
    filter.and_then(|filter| filter.image).map(|spec| spec.image).filter(|image| !image.is_empty())
}

/// Credentials of a pull.
pub(in crate::api) fn auth(auth: wire::AuthConfig) -> Auth {
    Auth {
        username: auth.username,
        password: auth.password.into(),
        auth: auth.auth.into(),
        server_address: auth.server_address,
        identity_token: auth.identity_token.into(),
        registry_token: auth.registry_token.into(),
    }
}

/// An image. Its `spec` names the id, never what was asked for: each way to ask gives the same answer.
pub(in crate::api) fn image(image: &Image) -> wire::Image {
    let (uid, username) = user(&image.config.user);
    wire::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        // A kubelet refuses an image of size 0, and an image without layers takes none.
        size: image.size.max(1),
        uid,
        username,
        spec: Some(wire::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// `USER` without its group: a number is a uid, else it is a name. A kubelet decides runAsNonRoot by it.
fn user(value: &str) -> (Option<wire::Int64Value>, String) {
    let user = value.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(wire::Int64Value { value: uid.into() }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// What images take on disk, now.
pub(in crate::api) fn fs_info(info: &FsInfo) -> wire::FilesystemUsage {
    let count = |value| Some(wire::UInt64Value { value });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    wire::FilesystemUsage {
        // Nanoseconds of an i64 last until the year 2262.
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(wire::FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
        used_bytes: count(info.used_bytes),
        inodes_used: count(info.inodes_used),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_as_a_kubelet_reads_them() {
        let cases = [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1003:web", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:www", None, "www-data"),
            ("4294967296", None, "4294967296"),
            ("-1", None, "-1"),
        ];
        for (text, uid, name) in cases {
            let found = user(text);
            assert_eq!((found.0.map(|uid| uid.value), found.1.as_str()), (uid, name), "{text}");
        }
    }

    #[test]
    fn references_are_present_bounded_and_printable() {
        let named = |image: &str| Some(wire::ImageSpec { image: image.into(), ..Default::default() });
        assert_eq!(reference(named("a:b")).unwrap(), "a:b");
        for bad in [None, named(""), named("a\nb"), named(&"a".repeat(1025))] {
            assert!(reference(bad).is_err());
        }
        assert_eq!(filter(Some(wire::ImageFilter { image: named("") })), None);
        assert_eq!(filter(Some(wire::ImageFilter { image: named("a") })), Some("a".into()));
    }

    #[test]
    fn credentials_are_never_shown() {
        let wire = wire::AuthConfig { password: "secret".into(), ..Default::default() };
        let request = wire::PullImageRequest { auth: Some(wire.clone()), ..Default::default() };
        assert!(!format!("{request:?}").contains("secret"));
        assert!(!format!("{:?}", auth(wire)).contains("secret"));
    }
}
