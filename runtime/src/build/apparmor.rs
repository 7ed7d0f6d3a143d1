//! The AppArmor profile of the program, set for the next exec. See Documentation/admin-guide/LSM/apparmor.rst.
//!
//! Written through a procfs that nobody can mount over, and read back: a label that went to another file would leave
//! the program unconfined (CVE-2019-16884, CVE-2025-52881).

use cove_path::Proc;
use rustix::io::Errno;

use super::step::{At, refuse};
use crate::protocol::Failure;

const STEP: &str = "apparmor";
const FILE: &str = "attr/apparmor/exec";

/// Makes the next exec of this process, or of a process it forks, change to `profile`. `proc` shows this process.
/// A kernel without AppArmor is an error: a profile that was asked for is never left out.
pub(super) fn set(proc: &Proc, profile: &str) -> Result<(), Failure> {
    let file = proc.own(FILE).at(STEP, || "find this process in procfs".to_owned())?;
    match proc.write(&file, format!("exec {profile}").as_bytes()) {
        Err(error) if error.errno() == Some(Errno::NOENT) => {
            return refuse(
                STEP,
                format!("profile {profile:?} asked for, but this kernel runs without AppArmor"),
            );
        }
        done => done.at(STEP, || format!("set the profile {profile:?} (is it loaded?)"))?,
    }
    let seen = proc.read(&file).at(STEP, || "read the profile back".to_owned())?;
    let seen = String::from_utf8_lossy(&seen);
    // `name (mode)`, or the bare name for `unconfined`.
    match seen.trim_end().rsplit_once(" (").map_or(seen.trim_end(), |(name, _)| name) == profile {
        true => Ok(()),
        false => refuse(STEP, format!("the profile is {seen:?}, not {profile:?}")),
    }
}
