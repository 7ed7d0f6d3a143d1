//! Which system calls a container may make: never more than what was asked for.

use std::fs;

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(filters_what_is_asked_for, never_falls_open, ignores_a_profile_of_a_privileged_container);

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() })
}

const LOOK: &str = "grep Seccomp: /proc/self/status | tr -d '\\t'; touch /tmp/x; chmod 600 /tmp/x 2>&1";

async fn filters_what_is_asked_for(world: &mut World) -> Outcome {
    let config = world.pod("seccomp");
    let id = world.run_pod(&config).await?;
    let file = world.directory.join("no-chmod.json");
    let deny = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&file, deny)?;
    let path = file.to_string_lossy().into_owned();
    let denied = "Seccomp:2\nchmod: /tmp/x: Operation not permitted\n";
    for (name, profile, expected) in [
        ("none", None, "Seccomp:0\n"),
        ("unconfined", profile(ProfileType::Unconfined, ""), "Seccomp:0\n"),
        ("default", profile(ProfileType::RuntimeDefault, ""), "Seccomp:2\n"),
        ("localhost", profile(ProfileType::Localhost, &path), denied),
    ] {
        for (no_new_privs, suffix) in [(false, ""), (true, "-nnp")] {
            let mut container =
                world.script(&format!("{name}{suffix}"), &format!("{LOOK}; echo end; sleep 1000"));
            pod::security(&mut container).seccomp.clone_from(&profile);
            pod::security(&mut container).no_new_privs = no_new_privs;
            let container = world.launch(&id, &config, &container).await?;
            let log = crate::world::log_text(&world.wrote(&container, "F end\n").await?)?;
            ensure_eq!((name, log), (name, format!("{expected}end\n")));
            let exec = world.exec(&container, &["sh", "-c", LOOK]).await?;
            ensure_eq!((name, String::from_utf8(exec.stdout)?), (name, expected.to_owned()));
            // The default profile lets nobody make a user namespace (CVE-2022-0492 began so).
            let exec = world.exec(&container, &["unshare", "-U", "true"]).await?;
            ensure!((exec.exit_code == 0) == (name != "default"), "{name}: unshare: {exec:?}");
        }
    }
    Ok(())
}

async fn never_falls_open(world: &mut World) -> Outcome {
    let config = world.pod("fails-closed");
    let id = world.run_pod(&config).await?;
    let at = |name: &str| world.directory.join(name).to_string_lossy().into_owned();
    fs::create_dir(at("directory"))?;
    for (name, text) in [
        ("empty", ""),
        ("no-json", "{"),
        ("action", r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#),
        ("architecture", r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}"#),
    ] {
        fs::write(at(name), text)?;
    }
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )?;
    let names = ["missing", "directory", "fifo", "empty", "no-json", "action", "architecture"];
    let paths = names.map(at).into_iter().chain(["".into(), "relative.json".into()]);
    for path in paths.collect::<Vec<_>>() {
        let mut container = world.script("closed", "true");
        pod::security(&mut container).seccomp = profile(ProfileType::Localhost, &path);
        let error = world.create(&id, &config, &container).await.refused()?;
        ensure!(
            error.code() == tonic::Code::InvalidArgument && error.message().contains("seccomp"),
            "{path}: {error:?}"
        );
    }
    ensure!(world.containers().await?.is_empty(), "nothing was made");
    Ok(())
}

async fn ignores_a_profile_of_a_privileged_container(world: &mut World) -> Outcome {
    let mut config = world.pod("privileged");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let id = world.run_pod(&config).await?;
    let mut container = world.script("privileged", LOOK);
    pod::security(&mut container).privileged = true;
    pod::security(&mut container).seccomp = profile(ProfileType::RuntimeDefault, "");
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "Seccomp:0\n");
    Ok(())
}
