//! The mounts of a spec: types and options by table, anything else refused.

use std::path::PathBuf;

use oci_spec::runtime::Mount as OciMount;

use super::{SpecError, mappings};
use crate::build::request::{Bind, ImageVolume, Mount, MountKind, Propagation, Tmpfs};
use crate::protocol::IdMap;

/// Mode of a tmpfs that names none, as the kernel has it.
const TMPFS_MODE: u32 = 0o1777;

/// Options that say what is done in any case, by file system: a spec may repeat them.
const FIXED: [(&str, &[&str]); 2] = [
    ("devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "mode=620", "gid=5"]),
    ("", &["rw", "suid", "dev", "exec", "relatime"]),
];

/// `ids`: those of the user namespace that the mounts are for.
pub(super) fn all(mounts: &[OciMount], ids: Option<&IdMap>) -> Result<Vec<Mount>, SpecError> {
    mounts
        .iter()
        .enumerate()
        .map(|(i, asked)| {
            let field = format!("mounts[{i}]");
            let mount = one(&field, asked)?;
            mapped(&field, asked, mount, ids)
        })
        .collect()
}

/// A mount with mappings: a volume whose owners are those of the user namespace.
fn mapped(field: &str, asked: &OciMount, mount: Mount, ids: Option<&IdMap>) -> Result<Mount, SpecError> {
    let found = mappings::one(field, asked.uid_mappings().as_deref(), asked.gid_mappings().as_deref())?;
    match (found, mount.kind) {
        (None, kind) => Ok(Mount { kind, ..mount }),
        (Some(_), kind) if !matches!(kind, MountKind::Bind(_)) => {
            Err(SpecError::new(format!("{field}.uidMappings"), "are built for bind mounts only"))
        }
        (Some(found), MountKind::Bind(bind)) if ids == Some(&found) => {
            Ok(Mount { kind: MountKind::MappedBind(bind), ..mount })
        }
        (Some(_), _) => {
            Err(SpecError::new(format!("{field}.uidMappings"), "are not those of the user namespace"))
        }
    }
}

fn one(field: &str, asked: &OciMount) -> Result<Mount, SpecError> {
    let destination = asked.destination();
    if !destination.is_absolute() {
        let reason = format!("{} is not absolute", destination.display());
        return Err(SpecError::new(format!("{field}.destination"), reason));
    }
    let mut mount = Mount {
        destination: destination.clone(),
        kind: kind(field, asked)?,
        readonly: false,
        nosuid: false,
        nodev: false,
        noexec: false,
    };
    for option in asked.options().as_deref().unwrap_or_default() {
        apply(&mut mount, option).map_err(|reason| {
            SpecError::new(
                format!("{field}.options"),
                format!("{option:?} of the mount on {}: {reason}", destination.display()),
            )
        })?;
    }
    Ok(mount)
}

fn kind(field: &str, asked: &OciMount) -> Result<MountKind, SpecError> {
    let options = asked.options().as_deref().unwrap_or_default();
    let bind = options.iter().any(|option| option == "bind" || option == "rbind");
    match asked.typ().as_deref() {
        Some("proc") => Ok(MountKind::Proc),
        Some("sysfs") => Ok(MountKind::Sysfs),
        Some("mqueue") => Ok(MountKind::Mqueue),
        Some("devpts") => Ok(MountKind::Devpts),
        Some("tmpfs") => Ok(MountKind::Tmpfs(Tmpfs { size: 0, mode: TMPFS_MODE, strict_atime: false })),
        Some("cgroup" | "cgroup2") => Ok(MountKind::Cgroup),
        Some("cove-shm") => Ok(MountKind::Shm),
        Some("cove-volume") => Ok(MountKind::Volume(absolute_source(field, asked)?)),
        Some("overlay") => Ok(MountKind::Image(ImageVolume { lower: Vec::new(), sub_path: PathBuf::new() })),
        Some("bind") => bind_of(field, asked),
        None | Some("" | "none") if bind => bind_of(field, asked),
        other => {
            let reason = format!("{:?} is no type that is built", other.unwrap_or_default());
            Err(SpecError::new(format!("{field}.type"), reason))
        }
    }
}

fn bind_of(field: &str, asked: &OciMount) -> Result<MountKind, SpecError> {
    Ok(MountKind::Bind(Bind {
        source: absolute_source(field, asked)?,
        recursive: false,
        propagation: Propagation::Private,
        recursive_readonly: false,
    }))
}

fn absolute_source(field: &str, asked: &OciMount) -> Result<PathBuf, SpecError> {
    match asked.source() {
        Some(source) if source.is_absolute() => Ok(source.clone()),
        _ => Err(SpecError::new(format!("{field}.source"), "this mount needs an absolute path")),
    }
}

/// The last of options that contradict each other counts, as mount(8) has it.
fn apply(mount: &mut Mount, option: &str) -> Result<(), String> {
    match option {
        "ro" => mount.readonly = true,
        "rw" => mount.readonly = false,
        "nosuid" => mount.nosuid = true,
        "suid" => mount.nosuid = false,
        "nodev" => mount.nodev = true,
        "dev" => mount.nodev = false,
        "noexec" => mount.noexec = true,
        "exec" => mount.noexec = false,
        _ => return by_kind(mount, option),
    }
    Ok(())
}

fn by_kind(mount: &mut Mount, option: &str) -> Result<(), String> {
    let devpts = matches!(mount.kind, MountKind::Devpts);
    let fixed = FIXED.iter().any(|(kind, words)| (kind.is_empty() || devpts) && words.contains(&option));
    match (&mut mount.kind, option) {
        _ if fixed => Ok(()),
        (MountKind::Bind(_), "rro") => {
            mount.readonly = true;
            if let MountKind::Bind(bind) = &mut mount.kind {
                bind.recursive_readonly = true;
            }
            Ok(())
        }
        (MountKind::Bind(bind), _) => of_bind(bind, option),
        (MountKind::Tmpfs(tmpfs), _) => of_tmpfs(tmpfs, option),
        (MountKind::Image(image), _) => of_image(image, option),
        // A cgroup mount of an old style names its place.
        _ => Err("is not built".to_owned()),
    }
}

/// Propagation is always set all the way down.
fn of_bind(bind: &mut Bind, option: &str) -> Result<(), String> {
    match option {
        "bind" => {}
        "rbind" => bind.recursive = true,
        "private" | "rprivate" => bind.propagation = Propagation::Private,
        "slave" | "rslave" => bind.propagation = Propagation::HostToContainer,
        "shared" | "rshared" => bind.propagation = Propagation::Bidirectional,
        _ => return Err("is not built".to_owned()),
    }
    Ok(())
}

/// `lowerdir+` is the kernel's word for one layer, the uppermost first; `X-mount.subdir` is mount(8)'s for a directory
/// instead of the root.
fn of_image(image: &mut ImageVolume, option: &str) -> Result<(), String> {
    match option.split_once('=') {
        Some(("lowerdir+", layer)) if layer.starts_with('/') => image.lower.push(layer.into()),
        Some(("X-mount.subdir", path)) if !path.is_empty() => image.sub_path = path.into(),
        _ => return Err("is not built".to_owned()),
    }
    Ok(())
}

fn of_tmpfs(tmpfs: &mut Tmpfs, option: &str) -> Result<(), String> {
    match option.split_once('=') {
        None if option == "strictatime" => tmpfs.strict_atime = true,
        Some(("size", value)) => tmpfs.size = bytes(value).ok_or("is no size in bytes")?,
        Some(("mode", value)) => {
            let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
            tmpfs.mode = mode.ok_or("is no mode in octal")?;
        }
        _ => return Err("is not built".to_owned()),
    }
    Ok(())
}

/// `65536k` and so on, with the suffixes of tmpfs(5).
fn bytes(value: &str) -> Option<u64> {
    let (digits, factor) = match value.as_bytes().last()? {
        b'k' | b'K' => (&value[..value.len() - 1], 1 << 10),
        b'm' | b'M' => (&value[..value.len() - 1], 1 << 20),
        b'g' | b'G' => (&value[..value.len() - 1], 1 << 30),
        _ => (value, 1),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("65536k", Some(65_536 << 10)),
            ("64m", Some(64 << 20)),
            ("1G", Some(1 << 30)),
            ("123", Some(123)),
            ("0", None),
            ("+1", None),
            ("1x", None),
            ("k", None),
            ("", None),
            ("50%", None),
            ("99999999999999999999", None),
            ("99999999999999999g", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
