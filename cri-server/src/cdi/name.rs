//! Names of CDI devices: `VENDOR/CLASS=NAME`, for example `nvidia.com/gpu=0`.

use std::fmt;

/// The longest name that is taken: what a Kubernetes resource's name may have, and as much again for the device.
const MAX: usize = 512;

/// A fully qualified name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// `VENDOR/CLASS`.
    pub kind: String,
    /// The device.
    pub device: String,
}

impl Name {
    /// Reads a name; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fault = || format!("{text:?} is not a CDI device: VENDOR/CLASS=NAME");
        if text.len() > MAX {
            return Err(format!("is {} bytes long, more than {MAX}", text.len()));
        }
        let (kind, device) = text.split_once('=').ok_or_else(fault)?;
        if is_kind(kind) && is_device(device) {
            return Ok(Self { kind: kind.to_owned(), device: device.to_owned() });
        }
        Err(fault())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// `VENDOR/CLASS`, each of letters, digits, `_`, `-` and `.`, from a letter to a letter or digit.
pub(super) fn is_kind(text: &str) -> bool {
    let part = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_word(text, "_-.");
    text.split_once('/').is_some_and(|(vendor, class)| part(vendor) && part(class))
}

/// As a part of a kind; it may begin with a digit and have colons.
pub(super) fn is_device(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_word(text, "_-.:")
}

fn is_word(text: &str, more: &str) -> bool {
    text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        for good in ["nvidia.com/gpu=0", "v/c=d", "intel.com/sriov-net=a:b.0", "v.x/c_d=GPU-1:2"] {
            assert_eq!(Name::parse(good).unwrap().to_string(), good);
        }
        let long = format!("v/c={}", "d".repeat(MAX));
        for bad in [
            "", "gpu", "v/c", "v/c=", "=d", "/c=d", "v/=d", "1v/c=d", "v/c=-d", "v/c=d.", "v/c/e=d",
            "v/c=d e", &long,
        ] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }
}
