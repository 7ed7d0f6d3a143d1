//! Labels of Linux security modules: never left out in silence.

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;

use crate::ensure::Refused;
use crate::world::World;

cases!(never_leaves_an_apparmor_profile_out, checks_selinux_labels_and_ignores_them,);

fn profile(kind: security_profile::ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}

async fn never_leaves_an_apparmor_profile_out(world: &mut World) -> Outcome {
    use security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let config = world.pod("apparmor");
    let id = world.run_pod(&config).await?;
    for (kind, name) in [(RuntimeDefault, ""), (Localhost, "no-such-profile"), (Localhost, "")] {
        let mut container = world.script("asked", "true");
        pod::security(&mut container).apparmor = profile(kind, name);
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure_eq!((name, refused.code()), (name, tonic::Code::InvalidArgument));
        ensure!(refused.message().contains("security_context.apparmor"), "{refused}");
        if enabled.trim() != "Y" && !(kind == Localhost && name.is_empty()) {
            ensure!(refused.message().contains("without AppArmor"), "{refused}");
        }
    }
    #[expect(deprecated, reason = "what an older client sends")]
    for name in ["runtime/default", "localhost/no-such-profile", "nonsense"] {
        let mut container = world.script("older", "true");
        pod::security(&mut container).apparmor_profile = name.into();
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure_eq!((name, refused.code()), (name, tonic::Code::InvalidArgument));
    }
    // What asks for nothing runs.
    let mut container = world.script("unconfined", "echo ran");
    #[expect(deprecated, reason = "what an older client sends")]
    {
        pod::security(&mut container).apparmor_profile = "runtime/default".into();
    }
    pod::security(&mut container).apparmor = profile(Unconfined, "");
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "ran\n");
    // Privileged is unconfined, as other runtimes have it.
    let mut config = world.pod("privileged");
    let sandbox = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    sandbox.privileged = true;
    let id = world.run_pod(&config).await?;
    let mut container = world.script("privileged", "echo ran");
    pod::security(&mut container).privileged = true;
    pod::security(&mut container).apparmor = profile(RuntimeDefault, "");
    let (_, text) = world.output(&id, &config, &container).await?;
    ensure_eq!(text, "ran\n");
    Ok(())
}

async fn checks_selinux_labels_and_ignores_them(world: &mut World) -> Outcome {
    if std::fs::exists("/sys/fs/selinux/enforce")? {
        return Err("this host has SELinux, which Cove does not honour yet".into());
    }
    let label = |level: &str| {
        Some(SeLinuxOption {
            user: "system_u".into(),
            role: "system_r".into(),
            r#type: "container_t".into(),
            level: level.into(),
        })
    };
    let mut config = world.pod("selinux");
    let sandbox = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    sandbox.selinux_options = label("s0:c1,c2");
    let id = world.run_pod(&config).await?;
    for count in 0..2 {
        let mut container = world.script(&format!("labelled-{count}"), "echo ran");
        pod::security(&mut container).selinux_options = label("s0-s0:c0.c1023");
        let (_, text) = world.output(&id, &config, &container).await?;
        ensure_eq!(text, "ran\n");
    }
    for bad in ["s0:c1,", "secret", "s0\n"] {
        let mut container = world.script("bad", "true");
        pod::security(&mut container).selinux_options = label(bad);
        let refused = world.create(&id, &config, &container).await.refused()?;
        ensure_eq!((bad, refused.code()), (bad, tonic::Code::InvalidArgument));
        ensure!(refused.message().contains("selinux_options.level"), "{refused}");
    }
    if let Some(place) = &world.place {
        // Said once, not for each pod and container.
        ensure_eq!(place.tail().matches("SELinux labels have no effect").count(), 1);
    }
    Ok(())
}
