//! `cove audit`, run as an operator runs it. The daemon's own command, so it is believed only because room `audit` plants
//! a leak of each kind and sees it found; what is looked at by other means stands in `leak` and `residue`.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Place;
use crate::{Outcome, wait};

/// How long things may take to go after the call that removed them was answered.
const SETTLE: Duration = Duration::from_secs(10);
/// Exit code of an audit that found something.
const FOUND: i32 = 3;

/// What an audit found, one JSON object each; checks that its exit code says the same.
pub fn look(place: &Place, repair: bool) -> Outcome<Vec<Value>> {
    let output = Command::new(place.programs.join("cove"))
        .arg("--config")
        .arg(place.config_file())
        .args(["audit", "--json"])
        .args(repair.then_some("--repair"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failed = |what: &str| -> Box<dyn std::error::Error + Send + Sync> {
        let errors = String::from_utf8_lossy(&output.stderr);
        format!("audit {what}: {}\n{text}\n{errors}", output.status).into()
    };
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).map_err(|_| failed("says no JSON"))?;
    let is_left = found.iter().any(|one| one["outcome"] != "removed");
    match output.status.code() {
        Some(0) if !is_left => Ok(found),
        Some(FOUND) if is_left => Ok(found),
        _ => Err(failed("says one thing and exits with another")),
    }
}

/// Waits until nothing is left over or missing; says what is.
pub fn check(place: &Place) -> Outcome {
    let mut found = Vec::new();
    wait::until("an audit that finds nothing", SETTLE, || {
        found = look(place, false)?;
        Ok(found.is_empty().then_some(()))
    })
    .map_err(|error| {
        let lines: Vec<_> = found.iter().map(Value::to_string).collect();
        format!("{error}; found:\n  {}", lines.join("\n  ")).into()
    })
}
