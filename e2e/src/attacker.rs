//! The program that the cases of escapes run inside of containers: `e2e/attacker`, built static.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::Outcome;

static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();

/// Its bytes. Built once a run, with the profile and the flags of the shim, whose dependencies it shares; or the file
/// `COVE_ATTACKER`, on a machine without a compiler.
pub fn program() -> Outcome<&'static [u8]> {
    if PROGRAM.get().is_none() {
        let built = match std::env::var_os("COVE_ATTACKER") {
            Some(file) => fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?,
            None => build()?,
        };
        // Nobody else sets it: cases run on one thread.
        let _ = PROGRAM.set(built);
    }
    Ok(PROGRAM.get().ok_or("no program")?)
}

fn build() -> Outcome<Vec<u8>> {
    let version = Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8(version.stdout)?;
    let triple = version.lines().find_map(|line| line.strip_prefix("host: ")).ok_or("rustc names no host")?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("cargo")
        .args(["build", "--locked", "--profile", "shim", "--target", triple, "-p", "cove-attacker"])
        .current_dir(&workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .output()?;
    if !output.status.success() {
        return Err(format!("build of the attacker: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), Into::into);
    Ok(fs::read(target.join(triple).join("shim/attacker"))?)
}
