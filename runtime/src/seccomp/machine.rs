//! What a profile is compiled for: the parts of its rules that depend on the node and on the container.

use super::error::SeccompError;
use super::table::Abi;

/// A kernel's version: major and minor.
pub(super) type Kernel = (u32, u32);

/// Where a filter will run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    /// ABI of the kernel's own programs.
    pub native: Abi,
    /// Version of the running kernel.
    pub kernel: Kernel,
    /// Bounding set of the container, as a mask by number.
    pub capabilities: u64,
}

impl Machine {
    /// This node.
    pub(super) fn this(capabilities: u64) -> Result<Self, SeccompError> {
        let native = if cfg!(target_arch = "x86_64") {
            Abi::X86_64
        } else if cfg!(target_arch = "aarch64") {
            Abi::Aarch64
        } else {
            let reason = format!("{} has no table of system calls here", std::env::consts::ARCH);
            return Err(SeccompError::Machine(reason));
        };
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let kernel = release_version(&release)
            .ok_or_else(|| SeccompError::Machine(format!("{release:?} is no kernel release")))?;
        Ok(Self { native, kernel, capabilities })
    }

    /// The ABIs that programs on this machine can use; the kernel reports no other to a filter that is built here.
    pub(super) const fn abis(self) -> &'static [Abi] {
        match self.native {
            Abi::X86_64 | Abi::X86 | Abi::X32 => &[Abi::X86_64, Abi::X86, Abi::X32],
            Abi::Aarch64 => &[Abi::Aarch64],
        }
    }
}

/// Of a release such as `6.18.44-cloud`; what follows the second number is a distribution's matter.
fn release_version(release: &str) -> Option<Kernel> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Of a profile's `minKernel`, such as `4.8`.
pub(super) fn version(text: &str) -> Option<Kernel> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (release, expected) in [
            ("6.18.44-fc-v669", Some((6, 18))),
            ("5.14-rc1", Some((5, 14))),
            ("6", None),
            ("", None),
            ("x.1", None),
        ] {
            assert_eq!(release_version(release), expected, "{release}");
        }
        for (text, expected) in
            [("4.8", Some((4, 8))), ("4", None), ("4.8.1", None), ("4.8-rc1", None), ("", None)]
        {
            assert_eq!(version(text), expected, "{text}");
        }
        assert!(Machine::this(0).unwrap().kernel >= (5, 14));
    }
}
