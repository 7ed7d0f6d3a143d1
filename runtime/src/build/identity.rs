//! Whom a process runs as: an image's USER resolved against the image's /etc/passwd and /etc/group.
//!
//! One strict parser. What is all digits is a number and never a name; a number out of range is an error and never
//! wraps; a name that is not there is an error and never root (CVE-2024-40635, CVE-2026-30892).

use std::path::Path;

use cove_guard::Guard;
use cove_path::Root;

use super::request::{GroupsPolicy, User};
use super::step::{At, refuse};
use crate::protocol::{Failure, ResolvedUser};

const STEP: &str = "user";
/// /etc/passwd or /etc/group of an image may be this long, in bytes; longer is refused (CVE-2026-47262).
const MAX_FILE: usize = 10 * 1024 * 1024;
/// The highest id: the next one, (uid_t)-1, means "no change" to chown(2) and setresuid(2).
const MAX_ID: u64 = 4_294_967_294;

/// The most groups of a process, so that a report of them fits one frame of the shim's protocol (16 KiB).
const MAX_GROUPS: usize = 3000;
/// Where a user without a home is at home, as every runtime has it.
const NO_HOME: &str = "/";

/// Who a process is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// What the kernel and the daemon are told.
    pub user: ResolvedUser,
    /// The home directory of the account, `/` without one. The image's word: only ever for its own programs.
    pub home: String,
}

/// One half of a USER.
#[derive(Debug, PartialEq, Eq)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// Resolves `user` against the files below `root`.
pub(super) fn resolve(root: &Root, user: &User) -> Result<Identity, Failure> {
    let (who, group) = split(&user.user)?;
    // One of the two files in memory at a time.
    let account = find_account(&read(root, "/etc/passwd")?, &who)?;
    let uid = match (&who, &account) {
        (Id::Number(uid), _) => *uid,
        (Id::Name(_), Some(account)) => account.uid,
        (Id::Name(name), None) => {
            return refuse(STEP, format!("no user {name:?} in the image's /etc/passwd"));
        }
    };
    let groups = read(root, "/etc/group")?;
    let gid = match (user.gid, group) {
        (Some(gid), _) => gid,
        (None, Some(Id::Number(gid))) => gid,
        (None, Some(Id::Name(name))) => named_group(&groups, name)?,
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut all = user.supplemental.clone();
    all.push(gid);
    if let (GroupsPolicy::Merge, Some(account)) = (&user.policy, &account) {
        all.extend(groups_of(&groups, &account.name));
    }
    all.sort_unstable();
    all.dedup();
    if all.len() > MAX_GROUPS {
        return refuse(STEP, format!("{:?} is in {} groups, more than {MAX_GROUPS}", user.user, all.len()));
    }
    let home = account.map(|account| account.home).filter(|home| !home.is_empty() && !home.contains('\0'));
    Ok(Identity {
        user: ResolvedUser { uid, gid, groups: all },
        home: home.unwrap_or_else(|| NO_HOME.to_owned()),
    })
}

fn split(user: &str) -> Result<(Id<'_>, Option<Id<'_>>), Failure> {
    if user.is_empty() {
        return Ok((Id::Number(0), None));
    }
    match user.split_once(':') {
        None => Ok((id(user, user)?, None)),
        Some((who, group)) => Ok((id(who, user)?, Some(id(group, user)?))),
    }
}

fn id<'a>(part: &'a str, whole: &str) -> Result<Id<'a>, Failure> {
    if part.is_empty() || part.contains(':') {
        return refuse(STEP, format!("{whole:?} is not a user or user:group"));
    }
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Id::Name(part));
    }
    match number(part) {
        Some(number) => Ok(Id::Number(number)),
        None => refuse(STEP, format!("{part:?} in {whole:?} is above the highest id, {MAX_ID}")),
    }
}

/// An id within range: digits only, no sign, no space.
fn number(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    if !Guard::StrictIds.holds() {
        return u32::try_from(number & u64::from(u32::MAX)).ok();
    }
    if number > MAX_ID { None } else { u32::try_from(number).ok() }
}

/// A file that is not there is an empty one, as in an image from scratch.
fn read(root: &Root, path: &str) -> Result<String, Failure> {
    let bytes = root
        .read_regular(Path::new(path), MAX_FILE)
        .at(STEP, || format!("read the image's {path}"))?
        .unwrap_or_default();
    // A line that is no UTF-8 is no line that was asked for: names come as UTF-8. What is all UTF-8 is not copied.
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[derive(Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// The first line of passwd(5) for `who`. Lines that are none are skipped; the line of a name that was asked for
/// must be right.
fn find_account(passwd: &str, who: &Id<'_>) -> Result<Option<Account>, Failure> {
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(_), Some(uid), Some(gid)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let asked = match who {
            Id::Name(wanted) => name == *wanted,
            Id::Number(wanted) => number(uid) == Some(*wanted),
        };
        if !asked || name.is_empty() {
            continue;
        }
        let (Some(uid), Some(gid)) = (number(uid), number(gid)) else {
            return refuse(STEP, format!("the line of {name:?} in the image's /etc/passwd has no valid ids"));
        };
        let home = fields.nth(1).unwrap_or_default().to_owned();
        return Ok(Some(Account { name: name.to_owned(), uid, gid, home }));
    }
    Ok(None)
}

/// The lines of group(5) that are right: name, id, members.
fn lines_of(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, number(gid)?, fields.next().unwrap_or_default()))
    })
}

fn named_group(group: &str, wanted: &str) -> Result<u32, Failure> {
    match lines_of(group).find(|(name, _, _)| *name == wanted) {
        Some((_, gid, _)) => Ok(gid),
        None => refuse(STEP, format!("no group {wanted:?} with a valid id in the image's /etc/group")),
    }
}

fn groups_of(group: &str, user: &str) -> Vec<u32> {
    lines_of(group)
        .filter(|(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          \n\
                          app:x:1000:1000::/:/bin/sh\n\
                          app:x:0:0::/:/bin/sh\n\
                          wraps:x:4294967296:1000::/\n\
                          4294967296:x:0:0::/\n\
                          1234:x:0:0::/\n\
                          neg:x:-1:0::/\n\
                          short:x:7\n\
                          nogid:x:1001:4294967295::/\n";
    const GROUP: &str =
        "root:x:0:root\nwheel:x:10:root,app\nbig:x:4294967296:app\nstaff:x:50:app,\n50000:x:1:x\n";

    fn rooted() -> (tempfile::TempDir, Root) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("etc")).unwrap();
        std::fs::write(temp.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(temp.path().join("etc/group"), GROUP).unwrap();
        let root = Root::open(temp.path()).unwrap();
        (temp, root)
    }

    fn asked(user: &str) -> User {
        User { user: user.to_owned(), gid: None, supplemental: Vec::new(), policy: GroupsPolicy::Merge }
    }

    /// uid, gid and groups; or what the refusal says.
    type Expected = Result<(u32, u32, &'static [u32]), &'static str>;

    #[test]
    fn every_form_of_user() {
        let (_temp, root) = rooted();
        let table: [(&str, Expected); 30] = [
            ("", Ok((0, 0, &[0, 10]))),
            ("root", Ok((0, 0, &[0, 10]))),
            ("0", Ok((0, 0, &[0, 10]))),
            ("app", Ok((1000, 1000, &[10, 50, 1000]))),
            ("1000", Ok((1000, 1000, &[10, 50, 1000]))),
            ("app:wheel", Ok((1000, 10, &[10, 50]))),
            ("app:77", Ok((1000, 77, &[10, 50, 77]))),
            ("1:root", Ok((1, 0, &[0]))),
            ("1", Ok((1, 0, &[0]))),
            ("01", Ok((1, 0, &[0]))),
            ("1234", Ok((1234, 0, &[0]))),
            ("2147483648", Ok((2_147_483_648, 0, &[0]))),
            ("4294967294", Ok((4_294_967_294, 0, &[0]))),
            ("4294967295", Err("highest id")),
            ("4294967296", Err("highest id")),
            ("99999999999", Err("highest id")),
            ("18446744073709551616", Err("highest id")),
            ("app:4294967295", Err("highest id")),
            ("1:", Err("is not a user")),
            (":1", Err("is not a user")),
            (":", Err("is not a user")),
            ("1:2:3", Err("is not a user")),
            ("0x1", Err("no user")),
            ("+1", Err("no user")),
            (" 1", Err("no user")),
            ("1 ", Err("no user")),
            ("-1", Err("no user")),
            ("nobody", Err("no user \"nobody\"")),
            ("app:big", Err("no group \"big\"")),
            ("wraps", Err("no valid ids")),
        ];
        for (user, expected) in table {
            match (resolve(&root, &asked(user)), expected) {
                (Ok(Identity { user: got, .. }), Ok((uid, gid, groups))) => {
                    assert_eq!((got.uid, got.gid, &got.groups[..]), (uid, gid, groups), "{user:?}");
                }
                (Err(got), Err(text)) => assert!(got.detail.contains(text), "{user:?}: {got:?}"),
                (got, expected) => panic!("{user:?}: {got:?}, not {expected:?}"),
            }
        }
        for user in ["neg", "nogid", "short"] {
            assert!(resolve(&root, &asked(user)).is_err(), "{user}");
        }
    }

    #[test]
    fn groups_by_policy() {
        let (_temp, root) = rooted();
        let user = User { gid: Some(5), supplemental: vec![9, 9, 50], ..asked("app") };
        assert_eq!(resolve(&root, &user).unwrap().user.groups, [5, 9, 10, 50]);
        let strict = User { policy: GroupsPolicy::Strict, ..user };
        assert_eq!(resolve(&root, &strict).unwrap().user.groups, [5, 9, 50]);
    }

    #[test]
    fn homes_and_crowds() {
        let (temp, root) = rooted();
        for (user, home) in [("root", "/root"), ("app", "/"), ("4321", "/"), ("1000", "/")] {
            assert_eq!(resolve(&root, &asked(user)).unwrap().home, home, "{user}");
        }
        let crowd: String = (0..=MAX_GROUPS).map(|n| format!("g{n}:x:{n}:app\n")).collect();
        std::fs::write(temp.path().join("etc/group"), crowd).unwrap();
        let refused = resolve(&root, &asked("app")).unwrap_err();
        assert!(refused.detail.contains("more than 3000"), "{refused:?}");
        assert_eq!(resolve(&root, &asked("root")).unwrap().user.groups, [0]);
    }

    #[test]
    fn files_that_are_none() {
        let (temp, root) = rooted();
        std::fs::remove_file(temp.path().join("etc/passwd")).unwrap();
        std::fs::remove_file(temp.path().join("etc/group")).unwrap();
        assert_eq!(resolve(&root, &asked("7:8")).unwrap().user.groups, [8]);
        let fifo = rustix::fs::FileType::Fifo;
        let at = temp.path().join("etc/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, at, fifo, rustix::fs::Mode::from(0o644), 0).unwrap();
        let refused = resolve(&root, &asked("app")).unwrap_err();
        assert!(refused.detail.contains("not a regular file"), "{refused:?}");
    }
}
