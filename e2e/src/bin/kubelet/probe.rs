//! Probes: what a kubelet asks of a container, through the runtime and from outside.

use cove_e2e::Outcome;
use serde_json::{Value, json};

use crate::ground::{Ground, IDLE, Trial, condition, of, restarts};

cases!(
    restarts_what_an_exec_probe_finds_ill,
    restarts_what_an_http_probe_finds_ill,
    waits_for_readiness,
    asks_by_tcp,
    gives_a_slow_start_its_time,
);

fn each_second(probe: Value) -> Value {
    let mut probe = probe;
    crate::ground::merge(&mut probe, json!({"periodSeconds": 1, "failureThreshold": 2}));
    probe
}

fn restarted(ground: &Ground, name: &str) -> Outcome {
    let pod = ground.seen(name, "to be restarted and well", |pod| {
        (restarts(pod, "main") > 0 && condition(pod, "Ready")).then(|| pod.clone())
    })?;
    ensure_eq!((name, restarts(&pod, "main")), (name, 1));
    let last = &of(&pod, "main")["lastState"]["terminated"];
    ensure!(last["exitCode"] == 0, "it ended when it was told to: {last}");
    Ok(())
}

/// Its first life becomes ill after a second.
fn falls_ill(with: &str, ill: &str) -> String {
    format!("{with}; test -e /witness/ill || {{ touch /witness/ill; sleep 1; {ill}; }}; {IDLE}")
}

fn restarts_what_an_exec_probe_finds_ill(ground: &Ground) -> Outcome<Trial> {
    let probe = each_second(json!({"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}}));
    let script = falls_ill("true", "touch /tmp/ill");
    let pod = ground.simple("ill-exec", &script, json!({"livenessProbe": probe}), json!({}))?;
    Trial::new(vec![pod], |ground| restarted(ground, "ill-exec"))
}

fn restarts_what_an_http_probe_finds_ill(ground: &Ground) -> Outcome<Trial> {
    let probe = each_second(json!({"httpGet": {"path": "/well", "port": 8080}, "initialDelaySeconds": 1}));
    let script = falls_ill("mkdir /www; echo yes >/www/well; httpd -p 8080 -h /www", "rm /www/well");
    let pod = ground.simple("ill-http", &script, json!({"livenessProbe": probe}), json!({}))?;
    Trial::new(vec![pod], |ground| restarted(ground, "ill-http"))
}

fn waits_for_readiness(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "mkdir /www; httpd -p 8080 -h /www
        while ! test -e /witness/go; do sleep 0.1; done; echo yes >/www/ready; {IDLE}"
    );
    let probe = each_second(json!({"httpGet": {"path": "/ready", "port": 8080}}));
    let pod = ground.simple("ready-http", &script, json!({"readinessProbe": probe}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        ground.seen("ready-http", "to run and not to be ready", |pod| {
            let main = of(pod, "main");
            (main["state"]["running"].is_object() && main["ready"] == false).then_some(())
        })?;
        std::fs::write(ground.witness("ready-http", "go"), "")?;
        let pod = ground.ready("ready-http")?;
        ensure_eq!(restarts(&pod, "main"), 0);
        Ok(())
    })
}

fn asks_by_tcp(ground: &Ground) -> Outcome<Trial> {
    let probe = each_second(json!({"tcpSocket": {"port": 9000}}));
    let open = ground.simple(
        "tcp-open",
        &format!("mkdir /www; httpd -p 9000 -h /www; {IDLE}"),
        json!({"readinessProbe": probe}),
        json!({}),
    )?;
    let closed = ground.simple("tcp-closed", IDLE, json!({"readinessProbe": probe}), json!({}))?;
    Trial::new(vec![open, closed], |ground| {
        ground.ready("tcp-open")?;
        let pod = ground.seen("tcp-closed", "to run", |pod| {
            of(pod, "main")["state"]["running"].is_object().then(|| pod.clone())
        })?;
        ensure!(!condition(&pod, "Ready"), "nobody listens there: {}", pod["status"]);
        Ok(())
    })
}

fn gives_a_slow_start_its_time(ground: &Ground) -> Outcome<Trial> {
    // The liveness probe would end it at once, did it not wait for the start.
    let started =
        json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 60});
    let lives =
        json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 1});
    let script = format!("sleep 4; touch /tmp/up; {IDLE}");
    let probes = json!({"startupProbe": started, "livenessProbe": lives});
    let pod = ground.simple("slow-start", &script, probes, json!({}))?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.ready("slow-start")?;
        ensure_eq!(restarts(&pod, "main"), 0);
        Ok(())
    })
}
