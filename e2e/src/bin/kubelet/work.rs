//! Containers and the order in which they run: init containers, sidecars, hooks, restarts, and what they leave behind.

use std::fs;
use std::time::Duration;

use cove_e2e::{Outcome, process};
use k8s_cri::v1::PodSandboxState;
use rustix::process::Signal;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial, condition, of, restarts};

cases!(
    runs_init_containers_in_order,
    starts_a_sidecar_before_and_ends_it_after,
    runs_hooks,
    restarts_a_container_whose_hook_fails,
    never_restarts,
    restarts_on_failure_only,
    restarts_always_and_backs_off,
    tells_termination_messages,
    ends_what_takes_too_long,
    replaces_a_pod_whose_manifest_changed,
    deletes_gracefully,
    kills_what_ignores_its_signal,
    starts_a_pod_anew_whose_sandbox_died,
);

fn runs_init_containers_in_order(ground: &Ground) -> Outcome<Trial> {
    let step = |name: &str| ground.container(name, &format!("echo {name} >>/witness/order"), json!({}));
    let main = ground.container("main", &format!("echo end >>/witness/order; {IDLE}"), json!({}));
    let pod = ground.pod("inits", &[main], json!({"initContainers": [step("one"), step("two")]}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("inits", "order")?, "one\ntwo\n");
        let pod = ground.ready("inits")?;
        for name in ["one", "two"] {
            let ended = &of(&pod, name)["state"]["terminated"];
            ensure!(ended["exitCode"] == 0 && ended["reason"] == "Completed", "{name}: {ended}");
        }
        Ok(())
    })
}

fn starts_a_sidecar_before_and_ends_it_after(ground: &Ground) -> Outcome<Trial> {
    let script = "trap 'echo side ended >>/witness/order; echo end >>/witness/order; exit 0' TERM
        sleep 1; echo side >>/witness/order; touch /tmp/up; sleep 100000 & wait";
    let probe =
        json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 60});
    let side = ground.container("side", script, json!({"restartPolicy": "Always", "startupProbe": probe}));
    let script = "trap 'echo main ended >>/witness/order; exit 0' TERM
        echo main >>/witness/order; sleep 100000 & wait";
    let pod = ground.pod(
        "sidecar",
        &[ground.container("main", script, json!({}))],
        json!({"initContainers": [side]}),
    )?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.ready("sidecar")?;
        ensure!(of(&pod, "side")["started"] == true, "{}", pod["status"]);
        ground.node.take_away("sidecar")?;
        ensure_eq!(ground.told("sidecar", "order")?, "side\nmain\nmain ended\nside ended\n");
        Ok(())
    })
}

fn runs_hooks(ground: &Ground) -> Outcome<Trial> {
    let hook =
        |word: &str| json!({"exec": {"command": ["sh", "-c", format!("echo {word} >>/witness/hooks")]}});
    let script = "trap 'echo TERM >>/witness/hooks; echo end >>/witness/hooks; exit 0' TERM
        while ! test -e /witness/hooks; do sleep 0.1; done; echo up >>/witness/hooks; sleep 100000 & wait";
    let lifecycle = json!({"postStart": hook("started"), "preStop": hook("stopping")});
    let pod = ground.simple("hooks", script, json!({"lifecycle": lifecycle}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("hooks")?;
        ground.node.take_away("hooks")?;
        ensure_eq!(ground.told("hooks", "hooks")?, "started\nup\nstopping\nTERM\n");
        Ok(())
    })
}

fn restarts_a_container_whose_hook_fails(ground: &Ground) -> Outcome<Trial> {
    // The hook fails the first time.
    let hook = json!({"exec": {"command": ["sh", "-c", "test -e /witness/again || { touch /witness/again; exit 1; }"]}});
    let pod = ground.simple("hook-fails", IDLE, json!({"lifecycle": {"postStart": hook}}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.seen("hook-fails", "to be restarted", |pod| {
            (restarts(pod, "main") == 1 && condition(pod, "Ready")).then(|| pod.clone())
        })?;
        let last = &of(&pod, "main")["lastState"]["terminated"];
        ensure!(last["exitCode"] == 0, "it ended when it was told to: {last}");
        Ok(())
    })
}

fn never_restarts(ground: &Ground) -> Outcome<Trial> {
    let never = json!({"restartPolicy": "Never"});
    let good = ground.simple("never-good", "exit 0", json!({}), never.clone())?;
    let bad = ground.simple("never-bad", "exit 3", json!({}), never.clone())?;
    let killed = ground.simple("never-killed", IDLE, json!({}), never)?;
    Trial::new(vec![good, bad, killed], |ground| {
        ground.ready("never-killed")?;
        process::signal(ground.pid("never-killed")?, Signal::KILL)?;
        for (name, phase, code, reason) in [
            ("never-good", "Succeeded", 0, "Completed"),
            ("never-bad", "Failed", 3, "Error"),
            ("never-killed", "Failed", 137, "Error"),
        ] {
            let pod =
                ground.seen(name, "to end", |pod| (pod["status"]["phase"] == phase).then(|| pod.clone()))?;
            let ended = of(&pod, "main")["state"]["terminated"].clone();
            ensure!(ended["exitCode"] == code && ended["reason"] == reason, "{name}: {ended}");
            ensure_eq!(restarts(&pod, "main"), 0);
        }
        Ok(())
    })
}

fn restarts_on_failure_only(ground: &Ground) -> Outcome<Trial> {
    let script = "test -e /witness/again && exit 0; touch /witness/again; exit 1";
    let pod = ground.simple("on-failure", script, json!({}), json!({"restartPolicy": "OnFailure"}))?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.seen("on-failure", "to succeed", |pod| {
            (pod["status"]["phase"] == "Succeeded").then(|| pod.clone())
        })?;
        ensure_eq!(restarts(&pod, "main"), 1);
        Ok(())
    })
}

fn restarts_always_and_backs_off(ground: &Ground) -> Outcome<Trial> {
    let script = "cd /witness; touch starts; test $(wc -l <starts) -lt 3 || exit 0; date +%s >>starts
        test $(wc -l <starts) -lt 3 || echo end >>starts; exit 0";
    let pod = ground.simple("always", script, json!({}), json!({"restartPolicy": "Always"}))?;
    Trial::new(vec![pod], |ground| {
        let starts = ground.told("always", "starts")?;
        let starts: Vec<i64> = starts.lines().map(str::parse).collect::<Result<_, _>>()?;
        let &[first, second, third] = &starts[..] else { return Err(format!("{starts:?}").into()) };
        // The first restart comes at once, the second after the ten seconds that a kubelet begins with. A runtime that told a
        // wrong end would change that. CrashLoopBackOff itself can be seen for some milliseconds only: a kubelet of 1.37
        // looks at such a pod again when the time is over.
        let (at_once, backed_off) = (second - first, third - second);
        ensure!(at_once < backed_off && (9..60).contains(&backed_off), "{starts:?}");
        let pod = ground.seen("always", "to be restarted twice", |pod| {
            (restarts(pod, "main") >= 2).then(|| pod.clone())
        })?;
        let last = &of(&pod, "main")["lastState"]["terminated"];
        ensure!(last["exitCode"] == 0 && last["reason"] == "Completed", "{last}");
        Ok(())
    })
}

fn tells_termination_messages(ground: &Ground) -> Outcome<Trial> {
    let never = json!({"restartPolicy": "Never"});
    let file = ground.simple(
        "message-file",
        "echo -n from the file >/tmp/last; exit 1",
        json!({"terminationMessagePath": "/tmp/last"}),
        never.clone(),
    )?;
    let log = ground.simple(
        "message-log",
        "echo from the log; exit 1",
        json!({"terminationMessagePolicy": "FallbackToLogsOnError"}),
        never,
    )?;
    Trial::new(vec![file, log], |ground| {
        for (name, expected) in [("message-file", "from the file"), ("message-log", "from the log\n")] {
            let message = ground.seen(name, "to fail", |pod| {
                let ended = of(pod, "main")["state"]["terminated"].clone();
                ended.is_object().then(|| ended["message"].clone())
            })?;
            ensure_eq!((name, message), (name, json!(expected)));
        }
        Ok(())
    })
}

fn ends_what_takes_too_long(ground: &Ground) -> Outcome<Trial> {
    let spec = json!({"activeDeadlineSeconds": 3, "restartPolicy": "Never"});
    let pod = ground.simple("deadline", IDLE, json!({}), spec)?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.seen("deadline", "to fail", |pod| {
            let failed = pod["status"]["phase"] == "Failed";
            (failed && of(pod, "main")["state"]["terminated"].is_object()).then(|| pod.clone())
        })?;
        ensure_eq!(pod["status"]["reason"], "DeadlineExceeded");
        Ok(())
    })
}

fn replaces_a_pod_whose_manifest_changed(ground: &Ground) -> Outcome<Trial> {
    let version = |word: &str| {
        let script = format!("echo {word} >/witness/version; echo end >>/witness/version; {IDLE}");
        ground.simple("changing", &script, json!({}), json!({}))
    };
    let (first, second) = (version("first")?, version("second")?);
    Trial::new(vec![first], move |ground| {
        ensure_eq!(ground.told("changing", "version")?, "first\n");
        let old = ground.ready("changing")?;
        let old_container = ground.id("changing", "main")?;
        ground.node.place(&second)?;
        ground.until("the second version", || {
            let text = fs::read_to_string(ground.witness("changing", "version"))?;
            Ok((text == "second\nend\n").then_some(()))
        })?;
        let new = ground.seen("changing", "to be another pod", |pod| {
            (pod["metadata"]["uid"] != old["metadata"]["uid"] && condition(pod, "Ready")).then(|| pod.clone())
        })?;
        ensure_eq!(restarts(&new, "main"), 0);
        ensure!(ground.id("changing", "main")? != old_container, "the old container runs on");
        Ok(())
    })
}

fn deletes_gracefully(ground: &Ground) -> Outcome<Trial> {
    let script = "trap 'sleep 1; echo ended >/witness/end; echo end >>/witness/end; exit 0' TERM
        echo up; sleep 100000 & wait";
    let spec = json!({"volumes": [{"name": "empty", "emptyDir": {}}], "terminationGracePeriodSeconds": 30});
    let pod = ground.simple(
        "deleted",
        script,
        json!({"volumeMounts": [{"name": "empty", "mountPath": "/empty"}]}),
        spec,
    )?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.ready("deleted")?;
        let uid = pod["metadata"]["uid"].as_str().ok_or("no uid")?.to_owned();
        let id = ground.id("deleted", "main")?;
        ground.node.take_away("deleted")?;
        let began = std::time::Instant::now();
        ensure_eq!(ground.told("deleted", "end")?, "ended\n");
        ensure!(began.elapsed() < Duration::from_secs(25), "it was killed, not told");
        ground
            .until("the kubelet to forget the pod", || Ok(ground.look("deleted")?.is_none().then_some(())))?;
        // Its collection looks once a minute.
        ground.until("the container and its sandbox to be removed", || {
            let containers = ground.cri(async |mut cri| Ok(cri.containers().await?))?;
            Ok((!containers.contains(&id) && ground.sandboxes(&uid)?.is_empty()).then_some(()))
        })?;
        ground.until("its directories to go", || {
            let volumes = ground.node.directory.join("kubelet/pods").join(&uid);
            Ok((!volumes.exists() && ground.log_files("deleted", "main")?.is_empty()).then_some(()))
        })
    })
}

fn kills_what_ignores_its_signal(ground: &Ground) -> Outcome<Trial> {
    let script =
        "trap 'echo ignored >/witness/signal; echo end >>/witness/signal' TERM; while :; do sleep 0.1; done";
    let pod = ground.simple("stubborn", script, json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.ready("stubborn")?;
        ground.node.take_away("stubborn")?;
        ensure_eq!(ground.told("stubborn", "signal")?, "ignored\n");
        ground.until("the kubelet to forget the pod", || Ok(ground.look("stubborn")?.is_none().then_some(())))
    })
}

fn starts_a_pod_anew_whose_sandbox_died(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("anew", IDLE, json!({}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        let old = ground.ready("anew")?;
        let uid = old["metadata"]["uid"].as_str().ok_or("no uid")?.to_owned();
        let (old_container, old_process) = (ground.id("anew", "main")?, ground.pid("anew")?);
        let of_pod = ground.sandboxes(&uid)?;
        let [sandbox] = of_pod.as_slice() else { return Err(format!("{of_pod:?}").into()) };
        ground.end_sandbox(sandbox)?;
        let new = ground.seen("anew", "to be another container", |pod| {
            let id = of(pod, "main")["containerID"].as_str().map(str::to_owned);
            let other = id.is_some_and(|id| !id.ends_with(&old_container));
            (other && condition(pod, "Ready")).then(|| pod.clone())
        })?;
        ensure!(new["metadata"]["uid"] == old["metadata"]["uid"], "it is the same pod");
        ensure!(!process::lives(old_process), "the old process lives on");
        // It is kept for the log of its container.
        let state = ground.cri(async |mut cri| Ok(cri.pod_status(sandbox).await?.state()))?;
        ensure_eq!(state, PodSandboxState::SandboxNotready);
        Ok(())
    })
}
