//! The commands of docs/tour.md, as a newcomer types them.

use std::path::Path;
use std::process::Command;

use cove_e2e::{Outcome, cni, daemon};

use crate::world::World;

cases!(every_command_of_the_tour_works);

/// The blocks of the page that are commands, one after another.
fn commands(page: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => text.extend([line, "\n"]),
            _ => {}
        }
    }
    text
}

fn demo(arguments: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(arguments)
        .env("COVE_DEMO_RANGE", "10.215.8.0/24")
        .output()?;
    ensure!(output.status.success(), "demo: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn every_command_of_the_tour_works(_: &mut World) -> Outcome {
    ensure!(cni::plugins().join("ptp").exists(), "no plugins: hack/deps cni builds them");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = commands(&std::fs::read_to_string(root.join("docs/tour.md"))?);
    demo(&["up"])?;
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&root)
        .env("COVE_PROGRAMS", daemon::programs())
        .output();
    let down = demo(&["down"]);
    let output = output?;
    let (said, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}:\n{said}\n{errors}", output.status);
    for part in ["written", "I am process 1", "1 packets received", "10.213.1.", "built-in, link demo"] {
        ensure!(said.contains(part), "no {part:?} in:\n{said}\n{errors}");
    }
    down
}
