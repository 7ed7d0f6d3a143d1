//! What plugins are called with, and what else than ADD and DEL they are called for.

use std::collections::BTreeMap;
use std::fs;

use cove_e2e::cni::list;
use cove_e2e::{Outcome, wait};
use k8s_cri::v1::*;
use serde_json::{Value, json};

use crate::cni::{addresses, host_port, network_ready, with_cni, write_list};
use crate::cni_fault::{odd, plugin};
use crate::world::{End, SOON, World};

cases!(
    tells_plugins_of_a_pod_as_others_do,
    is_not_ready_while_a_plugin_says_so,
    says_at_a_restart_what_is_somebodys,
);

async fn tells_plugins_of_a_pod_as_others_do(world: &mut World) -> Outcome {
    let script = "env >$D/env.$CNI_COMMAND; cat >$D/in.$CNI_COMMAND; exec $PTP <$D/in.$CNI_COMMAND";
    let plugins = plugin(world, script)?;
    let mut told = odd(world, "10.216.24.0/24");
    told["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    write_list(world, "10-told.conflist", &list("1.1.0", "told", &[told]))?;
    let path = plugins.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    with_cni(world, plugins, 60, async |world| {
        let mut config = world.pod("told");
        config.port_mappings.push(host_port(Protocol::Tcp, 18_219, "127.0.0.1"));
        config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "8M".into());
        let id = world.run_pod(&config).await?;
        let address = addresses(world, &id).await?[0];
        world.stop_pod(&id).await?;
        let metadata = config.metadata.as_ref().ok_or("no name")?;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME=told;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
            metadata.namespace, metadata.uid
        );
        for command in ["ADD", "DEL"] {
            let text = fs::read_to_string(world.directory.join(format!("env.{command}")))?;
            let mut env: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
            // The shell's own.
            env.retain(|name, _| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
            ensure!(env.remove("PATH").is_some(), "{text}");
            let netns = env.remove("CNI_NETNS").ok_or("no namespace")?;
            ensure!(netns.starts_with("/run/netns/") && netns.ends_with(&id), "{netns}");
            let expected = BTreeMap::from([
                ("CNI_ARGS", arguments.as_str()),
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", id.as_str()),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", path.as_str()),
            ]);
            ensure_eq!(env, expected);
            let handed: Value =
                serde_json::from_slice(&fs::read(world.directory.join(format!("in.{command}")))?)?;
            ensure_eq!([&handed["name"], &handed["cniVersion"]], [&json!("told"), &json!("1.1.0")]);
            let ports = json!([{ "hostPort": 18_219, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1" }]);
            ensure_eq!(handed["runtimeConfig"]["portMappings"], ports);
            ensure_eq!(handed["runtimeConfig"]["bandwidth"]["ingressRate"], json!(8_000_000));
            // What no plugin of the chain has asked for is not told.
            ensure_eq!(handed["runtimeConfig"].as_object().map(serde_json::Map::len), Some(2));
            let before = handed["prevResult"]["ips"][0]["address"].as_str().map(str::to_owned);
            let after = (command == "DEL").then(|| format!("{address}/24"));
            ensure_eq!(before, after);
        }
        Ok(())
    })
    .await
}

async fn is_not_ready_while_a_plugin_says_so(world: &mut World) -> Outcome {
    let script = r#"[ $CNI_COMMAND = STATUS ] && [ -e $D/away ] && {
        echo '{"code": 50, "msg": "the agent", "details": "is away"}'; exit 1; }"#;
    let plugins = plugin(world, script)?;
    let away = world.directory.join("away");
    fs::write(&away, "")?;
    write_list(world, "10-odd.conflist", &list("1.1.0", "status", &[odd(world, "10.216.25.0/24")]))?;
    with_cni(world, plugins, 60, async |world| {
        becomes(world, false, "the agent: is away").await?;
        fs::remove_file(&away)?;
        becomes(world, true, "").await?;
        let config = world.pod("later");
        world.run_pod(&config).await?;
        Ok(())
    })
    .await
}

/// Waits until NetworkReady is so, with these words.
async fn becomes(world: &mut World, ready: bool, words: &str) -> Outcome {
    let end = std::time::Instant::now() + SOON;
    loop {
        let found = network_ready(world).await?;
        if found.0 == ready && found.1.contains(words) {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < end, "{found:?} after {SOON:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// After a restart of the daemon the plugins are told whose attachments count, so that they release all others. The real
/// plugins have nothing to do for it, so the case looks at what is said.
async fn says_at_a_restart_what_is_somebodys(world: &mut World) -> Outcome {
    let plugins = plugin(world, "[ $CNI_COMMAND = GC ] && { cat >$D/gc.new; mv $D/gc.new $D/gc; exit 0; }")?;
    write_list(world, "10-odd.conflist", &list("1.1.0", "gc", &[odd(world, "10.216.26.0/24")]))?;
    with_cni(world, plugins, 60, async |world| {
        let config = world.pod("kept");
        let id = world.run_pod(&config).await?;
        let gone = world.pod("gone");
        let gone = world.run_pod(&gone).await?;
        world.remove_pod(&gone).await?;
        let told = world.directory.join("gc");
        if told.exists() {
            fs::remove_file(&told)?;
        }
        world.restart(End::Kill).await?;
        let text =
            wait::until("plugins to be told what counts", SOON, || Ok(fs::read_to_string(&told).ok()))?;
        let handed: Value = serde_json::from_str(&text)?;
        ensure_eq!(handed["name"], json!("gc"));
        ensure_eq!(handed["cni.dev/valid-attachments"], json!([{ "containerID": id, "ifname": "eth0" }]));
        Ok(())
    })
    .await
}
