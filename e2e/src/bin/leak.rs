//! What a runtime left on this machine: `leak save FILE` before, `leak check FILE [ROOT...]` after.
//!
//! The same look that every case ends with. Fails, and says what is different, if it is not the same within 5 s.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use cove_e2e::{Outcome, leak};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leak: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome {
    let [verb, file, roots @ ..] = arguments else {
        return Err("usage: leak save|check FILE [ROOT...]".into());
    };
    let roots: Vec<PathBuf> = roots.iter().map(PathBuf::from).collect();
    match verb.as_str() {
        "save" => Ok(std::fs::write(file, serde_json::to_vec(&leak::snapshot(&roots)?)?)?),
        "check" => leak::check(&serde_json::from_slice(&std::fs::read(file)?)?, &roots),
        other => Err(format!("unknown verb {other:?}").into()),
    }
}
