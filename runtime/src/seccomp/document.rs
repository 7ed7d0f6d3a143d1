//! The JSON of a profile: the form of Docker and containerd's files, of which the runtime spec's `linux.seccomp` is a
//! part.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::error::SeccompError;
use super::machine::{Machine, version};
use super::profile::{Action, Comparison, Condition, Profile, Rule, Scope};
use super::table::Abi;
use crate::build::capabilities;

/// Most bytes of a profile. The longest in use have 20 KB; this is what a daemon can read without a thought.
pub const PROFILE_LIMIT: u64 = 1 << 20;

/// What `SCMP_ACT_ERRNO` and `SCMP_ACT_TRACE` give where nothing is said: EPERM (runtime spec, `errnoRet`).
const DEFAULT_ERRNO: u32 = 1;
/// Greater ones are cut by the kernel (linux/err.h, MAX_ERRNO).
const MAX_ERRNO: u16 = 4095;
/// Arguments of a system call.
const ARGUMENTS: u8 = 6;

/// Names of errors that profiles have beside their numbers (`errno`, `defaultErrno`: CRI-O and Podman's form).
const ERRNOS: [(&str, u32); 9] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EACCES", 13),
    ("EINVAL", 22),
    ("ENOSYS", 38),
    ("EOPNOTSUPP", 95),
    ("ENOTSUP", 95),
    ("EAFNOSUPPORT", 97),
    ("ENETUNREACH", 101),
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: Option<String>,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Syscall>>,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscall {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: Option<String>,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Argument>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Profile {
    /// A profile from a file, as `localhost` profiles are.
    ///
    /// # Errors
    /// All that [`Profile::from_json`] gives, and a path that is empty, relative, missing or not that of a file.
    pub fn from_file(path: &Path) -> Result<Self, SeccompError> {
        if !path.is_absolute() {
            return Err(SeccompError::NotAbsolute(path.to_owned()));
        }
        let failed =
            |doing| move |source: std::io::Error| SeccompError::File { doing, path: path.to_owned(), source };
        // Opening a FIFO must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed("open")(e.into()))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(failed("look at"))?;
        if !metadata.is_file() {
            return Err(SeccompError::NotAFile(path.to_owned()));
        }
        let mut json = Vec::new();
        file.take(PROFILE_LIMIT + 1).read_to_end(&mut json).map_err(failed("read"))?;
        Self::from_json(&json)
    }

    /// A profile from the text of a file.
    ///
    /// # Errors
    /// Whatever is too long, missing, unknown, not built or cannot be, by its JSON path; unknown fields too.
    pub fn from_json(json: &[u8]) -> Result<Self, SeccompError> {
        if u64::try_from(json.len()).is_ok_and(|len| len <= PROFILE_LIMIT) {
            serde_json::from_slice::<Document>(json)?.convert()
        } else {
            Err(SeccompError::TooLong { limit: PROFILE_LIMIT })
        }
    }

    /// A profile from `linux.seccomp` of a runtime spec.
    ///
    /// # Errors
    /// As [`Profile::from_json`].
    pub fn from_oci(seccomp: &LinuxSeccomp) -> Result<Self, SeccompError> {
        serde_json::from_value::<Document>(serde_json::to_value(seccomp)?)?.convert()
    }

    /// As `linux.seccomp` of a runtime spec, with the rules that hold for a container with these `capabilities` (the
    /// mask of its bounding set) on this node: the spec has no word for conditions on rules.
    ///
    /// # Errors
    /// [`SeccompError::Machine`] on a node without a table of system calls.
    pub fn to_oci(&self, capabilities: u64) -> Result<LinuxSeccomp, SeccompError> {
        let machine = Machine::this(capabilities)?;
        let abis: Vec<&str> = self.abis_on(machine).into_iter().map(Abi::name).collect();
        let rules: Vec<Value> = self.rules_on(machine).map(rule).collect();
        let (action, errno) = action(self.default);
        let whole = json!({
            "defaultAction": action, "defaultErrnoRet": errno, "architectures": abis, "syscalls": rules,
        });
        Ok(serde_json::from_value(whole)?)
    }
}

fn rule(rule: &Rule) -> Value {
    let (action, errno) = action(rule.action);
    let args: Vec<Value> = rule.conditions.iter().map(argument).collect();
    json!({"names": rule.names, "action": action, "errnoRet": errno, "args": args})
}

fn action(action: Action) -> (String, Option<u16>) {
    let errno = match action {
        Action::Errno(value) | Action::Trace(value) => Some(value),
        _ => None,
    };
    (format!("SCMP_ACT_{}", action.word()), errno)
}

fn argument(condition: &Condition) -> Value {
    let (word, value, value_two) = match condition.comparison {
        Comparison::Ne => ("NE", condition.value, None),
        Comparison::Lt => ("LT", condition.value, None),
        Comparison::Le => ("LE", condition.value, None),
        Comparison::Eq => ("EQ", condition.value, None),
        Comparison::Ge => ("GE", condition.value, None),
        Comparison::Gt => ("GT", condition.value, None),
        Comparison::MaskedEq(mask) => ("MASKED_EQ", mask, Some(condition.value)),
    };
    json!({"index": condition.index, "value": value, "valueTwo": value_two, "op": format!("SCMP_CMP_{word}")})
}

impl Document {
    fn convert(self) -> Result<Profile, SeccompError> {
        refuse_listener("listenerPath", self.listener_path.as_deref())?;
        refuse_listener("listenerMetadata", self.listener_metadata.as_deref())?;
        for (i, flag) in self.flags.iter().flatten().enumerate() {
            check_flag(flag, &format!("flags[{i}]"))?;
        }
        let errno = errno(self.default_errno_ret, self.default_errno.as_deref(), "defaultErrno")?;
        let default = parse_action(self.default_action.as_deref(), errno, "defaultAction")?;
        let (abis, maps) = (self.architectures.unwrap_or_default(), self.arch_map.unwrap_or_default());
        if !abis.is_empty() && !maps.is_empty() {
            return Err(invalid("archMap", "is there beside architectures"));
        }
        let mut abis_by_native = Vec::new();
        for (i, map) in maps.iter().enumerate() {
            let field = format!("archMap[{i}]");
            let more = map.sub_architectures.as_deref().unwrap_or_default();
            let more = parse_abis(more, &format!("{field}.subArchitectures"))?;
            if let Some(native) = Abi::by_name(&map.architecture, &format!("{field}.architecture"))? {
                abis_by_native.push((native, more));
            }
        }
        let rules = self.syscalls.unwrap_or_default().into_iter().enumerate();
        Ok(Profile {
            default,
            abis: parse_abis(&abis, "architectures")?,
            abis_by_native,
            rules: rules.map(|(i, one)| one.convert(&format!("syscalls[{i}]"))).collect::<Result<_, _>>()?,
        })
    }
}

impl Syscall {
    fn convert(self, field: &str) -> Result<Rule, SeccompError> {
        let names = match (self.name.filter(|name| !name.is_empty()), self.names.unwrap_or_default()) {
            (Some(_), names) if !names.is_empty() => {
                return Err(invalid(format!("{field}.name"), "is there beside names"));
            }
            (Some(name), _) => vec![name],
            (None, names) => names,
        };
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(SeccompError::Missing { field: format!("{field}.names") });
        }
        let errno = errno(self.errno_ret, self.errno.as_deref(), &format!("{field}.errno"))?;
        let args = self.args.unwrap_or_default().into_iter().enumerate();
        Ok(Rule {
            names,
            action: parse_action(self.action.as_deref(), errno, &format!("{field}.action"))?,
            conditions: args
                .map(|(i, arg)| arg.convert(&format!("{field}.args[{i}]")))
                .collect::<Result<_, _>>()?,
            only: self.includes.map_or(Ok(Scope::default()), |f| f.convert(&format!("{field}.includes")))?,
            except: self
                .excludes
                .map_or(Ok(Scope::default()), |f| f.convert(&format!("{field}.excludes")))?,
        })
    }
}

impl Argument {
    fn convert(&self, field: &str) -> Result<Condition, SeccompError> {
        if self.index >= ARGUMENTS {
            return Err(invalid(format!("{field}.index"), "a system call has six arguments, 0 to 5"));
        }
        let (comparison, value) = match self.op.strip_prefix("SCMP_CMP_") {
            Some("NE") => (Comparison::Ne, self.value),
            Some("LT") => (Comparison::Lt, self.value),
            Some("LE") => (Comparison::Le, self.value),
            Some("EQ") => (Comparison::Eq, self.value),
            Some("GE") => (Comparison::Ge, self.value),
            Some("GT") => (Comparison::Gt, self.value),
            Some("MASKED_EQ") => (Comparison::MaskedEq(self.value), self.value_two.unwrap_or(0)),
            _ => return Err(unknown(format!("{field}.op"), &self.op)),
        };
        Ok(Condition { index: self.index, comparison, value })
    }
}

impl Filter {
    fn convert(self, field: &str) -> Result<Scope, SeccompError> {
        let mut mask = 0;
        for name in self.caps.iter().flatten() {
            mask |= capabilities::bit(name).ok_or_else(|| unknown(format!("{field}.caps"), name))?;
        }
        let kernel = match self.min_kernel.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(version(text).ok_or_else(|| invalid(format!("{field}.minKernel"), "is not like 4.8"))?)
            }
        };
        Ok(Scope { capabilities: mask, arches: self.arches.unwrap_or_default(), kernel })
    }
}

fn parse_abis(names: &[String], field: &str) -> Result<Vec<Abi>, SeccompError> {
    let abi = |(i, name): (usize, &String)| Abi::by_name(name, &format!("{field}[{i}]")).transpose();
    names.iter().enumerate().filter_map(abi).collect()
}

/// An empty action is an error, though runtimes on libseccomp take one without rules for "no filter".
fn parse_action(word: Option<&str>, errno: Option<u32>, field: &str) -> Result<Action, SeccompError> {
    let word = word.unwrap_or_default();
    if word.is_empty() {
        return Err(SeccompError::Missing { field: field.to_owned() });
    }
    let value = |most: u16| {
        u16::try_from(errno.unwrap_or(DEFAULT_ERRNO))
            .ok()
            .filter(|value| *value <= most)
            .ok_or_else(|| invalid(field, format!("its errno is greater than {most}")))
    };
    let action = match word.strip_prefix("SCMP_ACT_") {
        Some("ERRNO") => return Ok(Action::Errno(value(MAX_ERRNO)?)),
        Some("TRACE") => return Ok(Action::Trace(value(u16::MAX)?)),
        Some("KILL" | "KILL_THREAD") => Action::KillThread,
        Some("KILL_PROCESS") => Action::KillProcess,
        Some("TRAP") => Action::Trap,
        Some("LOG") => Action::Log,
        Some("ALLOW") => Action::Allow,
        Some("NOTIFY") => return Err(not_built(field, word)),
        _ => return Err(unknown(field, word)),
    };
    // Runtime spec: an error with an action that cannot give it "must" be refused.
    if errno.is_some() { Err(invalid(field, format!("{word} gives no errno"))) } else { Ok(action) }
}

/// The number, be it said by number, by name or, alike, by both.
fn errno(number: Option<u32>, name: Option<&str>, field: &str) -> Result<Option<u32>, SeccompError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(number) };
    let (_, named) = ERRNOS.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(field, name))?;
    match number {
        Some(number) if number != *named => Err(invalid(field, format!("{name} is {named}, not {number}"))),
        _ => Ok(Some(*named)),
    }
}

/// A process that loads a filter here has one thread, and keeps its guard against speculation; those two ask for
/// nothing that would have to be done.
fn check_flag(flag: &str, field: &str) -> Result<(), SeccompError> {
    match flag.strip_prefix("SECCOMP_FILTER_FLAG_") {
        Some("TSYNC" | "SPEC_ALLOW") => Ok(()),
        Some("LOG" | "WAIT_KILLABLE_RECV") => Err(not_built(field, flag)),
        _ => Err(unknown(field, flag)),
    }
}

fn refuse_listener(field: &str, value: Option<&str>) -> Result<(), SeccompError> {
    match value {
        None | Some("") => Ok(()),
        Some(_) => Err(not_built(field, "a listener")),
    }
}

fn unknown(field: impl Into<String>, value: &str) -> SeccompError {
    SeccompError::Unknown { field: field.into(), value: value.to_owned() }
}

fn not_built(field: &str, value: &str) -> SeccompError {
    SeccompError::NotBuilt { field: field.to_owned(), value: value.to_owned() }
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> SeccompError {
    SeccompError::Invalid { field: field.into(), reason: reason.into() }
}
