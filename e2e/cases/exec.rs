//! ExecSync: probes and hooks.

use std::time::{Duration, Instant};

use cove_e2e::Outcome;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    answers_with_output_and_code,
    is_ended_at_its_timeout,
    does_not_wait_for_a_child_that_holds_the_pipe,
    bounds_its_output,
    tells_a_missing_command,
    needs_a_running_container,
    runs_many_at_once,
    is_killed_when_the_client_goes,
    gives_back_what_a_flood_took,
);

async fn sleeper(world: &mut World) -> Outcome<(String, String)> {
    let config = world.pod("exec");
    let id = world.run_pod(&config).await?;
    let container = world.launch(&id, &config, &world.script("sleep", "sleep 100000")).await?;
    Ok((id, container))
}

async fn sleeps(world: &mut World, container: &str) -> Outcome<String> {
    let exec = world.exec(container, &["sh", "-c", "ps -o args | grep -c '[s]leep 4321'"]).await?;
    Ok(String::from_utf8(exec.stdout)?.trim().to_owned())
}

async fn answers_with_output_and_code(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let answer = world.exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await?;
    ensure_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 5));
    let answer = world.exec(&container, &["sh", "-c", "kill -9 $$"]).await?;
    ensure_eq!(answer.exit_code, 137);
    let answer = world.exec(&container[..13], &["cat"]).await?;
    ensure_eq!((answer.exit_code, answer.stdout.len()), (0, 0));
    Ok(())
}

async fn is_ended_at_its_timeout(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let began = Instant::now();
    let error =
        world.exec_limited(&container, &["sh", "-c", "sleep 4321 & sleep 4321"], 1).await.refused()?;
    ensure_eq!(error.code(), tonic::Code::DeadlineExceeded);
    ensure!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    ensure_eq!(sleeps(world, &container).await?, "0");
    Ok(())
}

async fn does_not_wait_for_a_child_that_holds_the_pipe(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let began = Instant::now();
    let answer = world.exec_limited(&container, &["sh", "-c", "sleep 4321 & echo started"], 60).await?;
    ensure_eq!((&answer.stdout[..], answer.exit_code), (&b"started\n"[..], 0));
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Ok(())
}

async fn bounds_its_output(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let answer = world.exec_limited(&container, &["dd", "if=/dev/zero", "bs=1M", "count=40"], 60).await?;
    ensure!(answer.stdout.len() > 1 << 20 && answer.stdout.len() < 16 << 20, "{} bytes", answer.stdout.len());
    ensure_eq!(answer.exit_code, 0);
    Ok(())
}

async fn tells_a_missing_command(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let error = world.exec(&container, &["no-such-program"]).await.refused()?;
    ensure!(error.message().contains("no-such-program"), "{error:?}");
    let error = world.exec(&container, &[]).await.refused()?;
    ensure_eq!(error.code(), tonic::Code::InvalidArgument);
    Ok(())
}

async fn needs_a_running_container(world: &mut World) -> Outcome {
    let config = world.pod("not-running");
    let id = world.run_pod(&config).await?;
    let created = world.create(&id, &config, &world.script("created", "true")).await?;
    ensure_eq!(world.exec(&created, &["true"]).await.refused()?.code(), tonic::Code::FailedPrecondition);
    ensure_eq!(world.exec(&"0".repeat(64), &["true"]).await.refused()?.code(), tonic::Code::NotFound);
    Ok(())
}

async fn runs_many_at_once(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let mut running = tokio::task::JoinSet::new();
    for n in 0..200 {
        let (cri, container) = (world.cri.clone(), container.clone());
        running.spawn(async move {
            let request = k8s_cri::v1::ExecSyncRequest {
                container_id: container,
                cmd: vec!["sh".into(), "-c".into(), format!("echo {n}; exit {}", n % 100)],
                timeout: 60,
            };
            let answer = cri.clone().runtime.exec_sync(request).await.map(tonic::Response::into_inner);
            (n, answer)
        });
        if running.len() >= 10 {
            check(running.join_next().await)?;
        }
    }
    while let Some(ended) = running.join_next().await {
        check(Some(ended))?;
    }
    Ok(())
}

type Answer = (i32, Result<k8s_cri::v1::ExecSyncResponse, tonic::Status>);

fn check(ended: Option<Result<Answer, tokio::task::JoinError>>) -> Outcome {
    let (n, answer) = ended.ok_or("nothing ran")??;
    let answer = answer?;
    ensure_eq!((answer.stdout, answer.exit_code), (format!("{n}\n").into_bytes(), n % 100));
    Ok(())
}

async fn is_killed_when_the_client_goes(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let mut other = world.cri.clone();
    let request = k8s_cri::v1::ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["sleep".into(), "4321".into()],
        timeout: 0,
    };
    let call = tokio::spawn(async move { other.runtime.exec_sync(request).await });
    let mut seen = String::new();
    while seen != "1" {
        seen = sleeps(world, &container).await?;
    }
    call.abort();
    let end = Instant::now() + crate::world::SOON;
    while sleeps(world, &container).await? != "0" {
        ensure!(Instant::now() < end, "the exec lives on");
    }
    Ok(())
}

/// security-bar.md E39.
async fn gives_back_what_a_flood_took(world: &mut World) -> Outcome {
    let (_, container) = sleeper(world).await?;
    let before = crate::stream_protocol::memory(world)?;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut runtime = world.cri.runtime.clone();
        let cmd = ["sh", "-c", "yes & yes >&2"].map(str::to_owned).to_vec();
        let request = k8s_cri::v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 5 };
        running.spawn(async move { runtime.exec_sync(request).await.map(drop) });
    }
    let mut most = 0;
    while !running.is_empty() {
        most = most.max(crate::stream_protocol::memory(world)?);
        let ended = tokio::time::timeout(Duration::from_millis(50), running.join_next()).await;
        if let Ok(Some(ended)) = ended {
            // Which of the two bounds an exec meets first is a matter of time.
            let code = ended?.refused()?.code();
            ensure!(
                matches!(code, tonic::Code::DeadlineExceeded | tonic::Code::ResourceExhausted),
                "{code:?}"
            );
        }
    }
    let grown = most.saturating_sub(before);
    ensure!(grown < (8 * 40) << 10, "the daemon grew by {grown} KiB");
    let end = Instant::now() + crate::world::SOON;
    loop {
        let left = crate::stream_protocol::memory(world)?.saturating_sub(before);
        if left < 16 << 10 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the daemon keeps {left} KiB");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
