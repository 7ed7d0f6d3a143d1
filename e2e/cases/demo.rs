//! The demo of `hack/up`: what it shows comes from the running system, and it leaves nothing.

use std::process::Command;

use cove_e2e::Outcome;

use crate::world::World;

cases!(shows_the_running_system, takes_down_what_it_left, runs_on_the_real_plugins);

fn demo(arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(arguments)
        .env("COVE_DEMO_TEXT", "a text of the test's own")
        .env("COVE_DEMO_RANGE", "10.215.7.0/24")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

async fn shows_the_running_system(_: &mut World) -> Outcome {
    let text = demo(&["up", "--once"])?;
    for part in ["10.215.7.", "sandbox network", "container run"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    // From the host, from the second pod, and in the log.
    ensure!(text.matches("a text of the test's own").count() >= 3, "{text}");
    Ok(())
}

async fn takes_down_what_it_left(_: &mut World) -> Outcome {
    let text = demo(&["up"])?;
    let answer =
        text.lines().find_map(|line| line.trim().strip_prefix("curl ")).ok_or("no address to try")?;
    ensure!(
        ureq::get(answer).call()?.body_mut().read_to_string()?.contains("a text of the test's own"),
        "{answer}"
    );
    demo(&["down"])?;
    demo(&["down"])?;
    Ok(())
}

async fn runs_on_the_real_plugins(_: &mut World) -> Outcome {
    let text = demo(&["up", "--once", "--cni"])?;
    for part in ["10.215.7.", "CNI demo (bridge, portmap)", "sandbox network"] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    ensure!(text.matches("a text of the test's own").count() >= 3, "{text}");
    Ok(())
}
