//! What a case is given: a daemon, a client, a registry with images, and the check that nothing is left.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use cove_e2e::client::{self, Cri};
use cove_e2e::daemon::{self, Daemon, Place};
use cove_e2e::image::{self, Layer};
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, audit, leak, pod, wait};
use k8s_cri::v1::*;
use serde_json::json;
use tempfile::TempDir;

/// A case by name. The name says what must hold.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Guards that the daemon is without: for controls (see `escape`).
    pub(crate) unguarded: &'static str,
    /// It shows that the case of the same name can fail.
    pub(crate) control: bool,
    pub(crate) run: for<'a> fn(&'a mut World) -> Pin<Box<dyn Future<Output = Outcome> + 'a>>,
}

/// How long a state may take to be reached.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// How long a case may take: none needs a tenth of it on a machine of its own, so what reaches it hangs.
const CASE_LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct World {
    pub(crate) cri: Cri,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) place: Option<Place>,
    pub(crate) registry: &'static Registry,
    /// The busybox image: `host/e2e/busybox:1`.
    pub(crate) image: String,
    /// A directory of the case, for logs and volumes.
    pub(crate) directory: PathBuf,
    /// Guards that the daemon is without.
    pub(crate) unguarded: &'static str,
    /// It is a control that is run.
    pub(crate) control: bool,
    _keep: TempDir,
}

static REGISTRY: OnceLock<(Registry, TempDir)> = OnceLock::new();

/// Ends the registry: a static is never dropped.
pub(crate) fn end_registry() -> Outcome {
    let Some((registry, directory)) = REGISTRY.get() else { return Ok(()) };
    registry.end()?;
    Ok(std::fs::remove_dir_all(directory.path())?)
}

/// One registry for the whole run.
fn registry() -> Outcome<&'static Registry> {
    if REGISTRY.get().is_none() {
        let directory = tempfile::Builder::new().prefix("cove-e2e-registry-").tempdir()?;
        let registry = Registry::start(directory.path())?;
        let busybox = image::build(
            vec![image::busybox()?, image::accounts(), Layer::new().file("etc/motd", 0o644, "welcome\n")],
            json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/tmp"}),
        )?;
        registry.push("e2e/busybox", "1", &busybox)?;
        // Nobody else sets it: cases run on one thread.
        let _ = REGISTRY.set((registry, directory));
    }
    Ok(&REGISTRY.get().ok_or("no registry")?.0)
}

/// Runs one case in a world of its own.
pub(crate) fn run(case: &Case) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let outcome = runtime.block_on(async { tokio::time::timeout(CASE_LIMIT, run_async(case)).await });
    outcome.map_err(|_| format!("took longer than {CASE_LIMIT:?}"))?.map_err(|error| error.to_string())
}

async fn run_async(case: &Case) -> Outcome {
    let registry = registry()?;
    let keep = tempfile::Builder::new().prefix("cove-e2e-").tempdir()?;
    let directory = keep.path().to_owned();
    let image = format!("{}/e2e/busybox:1", registry.host);
    if let Some(endpoint) = std::env::var_os("COVE_ENDPOINT") {
        let cri = client::connect(&PathBuf::from(endpoint)).await?;
        let mut world = World {
            cri,
            daemon: None,
            place: None,
            registry,
            image,
            directory,
            unguarded: "",
            control: case.control,
            _keep: keep,
        };
        world.pull(&world.image.clone()).await?;
        let outcome = (case.run)(&mut world).await;
        return outcome.and(world.remove_everything().await);
    }
    let place = Place {
        instance: own_instance().unwrap_or_else(|| "e2e".into()),
        root: directory.join("root"),
        state: directory.join("state"),
        range: std::env::var("COVE_E2E_RANGE").unwrap_or_else(|_| "10.214.0.0/24".into()),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    };
    prepare_netns_directory()?;
    let settings = Saved::now()?;
    let machine = leak::snapshot(&[])?;
    let mut daemon = place.start_with(&without(case.unguarded))?;
    let cri = daemon.connect().await?;
    let roots = [place.root.clone(), place.state.clone()];
    let mut world = World {
        cri,
        daemon: Some(daemon),
        place: Some(place.clone()),
        registry,
        image,
        directory,
        unguarded: case.unguarded,
        control: case.control,
        _keep: keep,
    };
    let outcome = async {
        world.pull(&world.image.clone()).await?;
        let before = leak::snapshot(&roots)?;
        let running = Saved::now()?;
        (case.run)(&mut world).await?;
        world.remove_everything().await?;
        // A case may have had a range of another family, whose forwarding stays on.
        running.restore()?;
        // A case may have restarted its daemon: a new pid is no leak.
        let own = own_instance();
        let counts = |line: &String| !is_daemon(line) && is_ours(line, own.as_deref());
        let before = before.into_iter().filter(counts).collect();
        check_but_daemon(&before, &roots)?;
        audit::check(&place)
    }
    .await;
    // With no daemon nothing is on its way any more.
    let end = world.end().await.and_then(|()| audit::check(&place));
    let restored = settings.restore();
    let outcome = outcome.and(end).and(restored).and_then(|()| {
        let own = own_instance();
        let machine = machine.into_iter().filter(|line| is_ours(line, own.as_deref())).collect();
        leak::check_where(&machine, &[], |line| is_ours(line, own.as_deref()))
    });
    outcome.map_err(|error| format!("{error}\n--- the daemon's log:\n{}", place.tail()).into())
}

/// The environment of a daemon without these guards.
fn without(guards: &'static str) -> Vec<(&'static str, &'static str)> {
    if guards.is_empty() { Vec::new() } else { vec![("COVE_UNGUARDED", guards)] }
}

fn is_daemon(line: &str) -> bool {
    line.starts_with("process ") && line.ends_with("/cove")
}

fn check_but_daemon(before: &leak::Found, roots: &[PathBuf]) -> Outcome {
    let own = own_instance();
    leak::check_where(before, roots, |line| !is_daemon(line) && is_ours(line, own.as_deref()))
}

/// `COVE_E2E_INSTANCE` and `COVE_E2E_RANGE` let cases run beside other runtimes on the machine: then only what carries
/// the name of this instance is looked at.
fn own_instance() -> Option<String> {
    std::env::var("COVE_E2E_INSTANCE").ok()
}

fn is_ours(line: &str, own: Option<&str>) -> bool {
    own.is_none_or(|own| line.contains(own))
}

/// `ip netns` makes /run/netns a mount point at its first use, as Cove does: both leave it so, and it is no leak.
fn prepare_netns_directory() -> Outcome {
    let name = format!("e2e-{}", std::process::id());
    for verb in ["add", "del"] {
        let output = std::process::Command::new("ip").args(["netns", verb, &name]).output()?;
        if !output.status.success() {
            return Err(format!("ip netns {verb}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

impl World {
    /// A control has shown what it is for once anything is reached.
    pub(crate) fn is_shown(&self, reached: &[String]) -> bool {
        self.control && !reached.is_empty()
    }

    /// Pulls an image and returns its id.
    pub(crate) async fn pull(&mut self, reference: &str) -> Outcome<String> {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: reference.into(), ..Default::default() }),
            ..Default::default()
        };
        Ok(self.cri.images.pull_image(request).await?.into_inner().image_ref)
    }

    /// The name of a pod of this case with a log directory.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            log_directory: self.directory.join("logs").join(name).to_string_lossy().into_owned(),
            ..pod::sandbox(name)
        }
    }

    pub(crate) async fn run_pod(&mut self, config: &PodSandboxConfig) -> Outcome<String> {
        Ok(self.try_run_pod(config).await?)
    }

    pub(crate) async fn try_run_pod(&mut self, config: &PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.cri.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn create(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        Ok(self.cri.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub(crate) async fn start(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = StartContainerRequest { container_id: container.into() };
        self.cri.runtime.start_container(request).await.map(drop)
    }

    /// Creates and starts.
    pub(crate) async fn launch(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Outcome<String> {
        let id = self.create(sandbox, pod, config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// A container of the busybox image that runs a shell script.
    pub(crate) fn script(&self, name: &str, script: &str) -> ContainerConfig {
        pod::container(name, &self.image, &["sh", "-c", script])
    }

    pub(crate) async fn status(&mut self, container: &str) -> Result<ContainerStatus, tonic::Status> {
        let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
        let response = self.cri.runtime.container_status(request).await?.into_inner();
        response.status.ok_or_else(|| tonic::Status::internal("a status without a status"))
    }

    pub(crate) async fn pod_status(&mut self, sandbox: &str) -> Result<PodSandboxStatus, tonic::Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
        let response = self.cri.runtime.pod_sandbox_status(request).await?.into_inner();
        response.status.ok_or_else(|| tonic::Status::internal("a status without a status"))
    }

    /// Waits until a container has ended.
    pub(crate) async fn exited(&mut self, container: &str) -> Outcome<ContainerStatus> {
        let cri = self.cri.clone();
        wait::until_async("the container to end", SOON, || {
            let mut cri = cri.clone();
            let request = ContainerStatusRequest { container_id: container.into(), verbose: false };
            async move {
                let status = cri.runtime.container_status(request).await?.into_inner().status;
                Ok(status.filter(|status| status.state() == ContainerState::ContainerExited))
            }
        })
        .await
    }

    /// Waits until a container has written `text`, and returns its log.
    pub(crate) async fn wrote(&mut self, container: &str, text: &str) -> Outcome<String> {
        let log = self.status(container).await?.log_path;
        wait::until(&format!("{text:?} in the log"), SOON, || {
            Ok(Some(std::fs::read_to_string(&log)?).filter(|log| log.contains(text)))
        })
    }

    /// Runs a script to its end and returns its log as (stream, text) with partial lines joined.
    pub(crate) async fn output(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Outcome<(ContainerStatus, String)> {
        let id = self.launch(sandbox, pod, config).await?;
        let status = self.exited(&id).await?;
        let text = log_text(&std::fs::read_to_string(&status.log_path)?)?;
        Ok((status, text))
    }

    pub(crate) async fn exec(
        &mut self,
        container: &str,
        cmd: &[&str],
    ) -> Result<ExecSyncResponse, tonic::Status> {
        self.exec_limited(container, cmd, 10).await
    }

    pub(crate) async fn exec_limited(
        &mut self,
        container: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: container.into(), cmd, timeout };
        Ok(self.cri.runtime.exec_sync(request).await?.into_inner())
    }

    pub(crate) async fn stop(&mut self, container: &str, timeout: i64) -> Result<(), tonic::Status> {
        let request = StopContainerRequest { container_id: container.into(), timeout };
        self.cri.runtime.stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove(&mut self, container: &str) -> Result<(), tonic::Status> {
        let request = RemoveContainerRequest { container_id: container.into() };
        self.cri.runtime.remove_container(request).await.map(drop)
    }

    pub(crate) async fn stop_pod(&mut self, sandbox: &str) -> Result<(), tonic::Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.into() };
        self.cri.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&mut self, sandbox: &str) -> Result<(), tonic::Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.into() };
        self.cri.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn pods(&mut self) -> Outcome<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest { filter: None };
        Ok(self.cri.runtime.list_pod_sandbox(request).await?.into_inner().items)
    }

    pub(crate) async fn containers(&mut self) -> Outcome<Vec<Container>> {
        let request = ListContainersRequest { filter: None };
        Ok(self.cri.runtime.list_containers(request).await?.into_inner().containers)
    }

    /// Stops and removes every pod and every image but the common one.
    pub(crate) async fn remove_everything(&mut self) -> Outcome {
        for pod in self.pods().await? {
            self.stop_pod(&pod.id).await?;
            self.remove_pod(&pod.id).await?;
        }
        Ok(())
    }

    /// Ends the daemon as an administrator would, and starts another on the same roots.
    pub(crate) async fn restart(&mut self, how: End) -> Outcome {
        let daemon = self.daemon.take().ok_or("a case that restarts needs a daemon of its own")?;
        match how {
            End::Term => daemon.stop()?,
            End::Kill => daemon.kill()?,
        }
        self.resume(&[]).await
    }

    /// Starts the daemon again after it has ended.
    pub(crate) async fn resume(&mut self, env: &[(&str, &str)]) -> Outcome {
        let place = self.place.clone().ok_or("a case that restarts needs a daemon of its own")?;
        let env = [env, &without(self.unguarded)].concat();
        let mut daemon = place.start_with(&env)?;
        self.cri = daemon.connect().await?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Takes down whatever the case left, so that the next one starts on a clean machine.
    async fn end(&mut self) -> Outcome {
        if self.daemon.is_some() {
            let removed = self.remove_everything().await;
            if let Some(daemon) = self.daemon.take() {
                daemon.stop()?;
            }
            removed?;
        }
        Ok(())
    }
}

/// How a daemon is ended.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Term,
    Kill,
}

/// The payload of a CRI log; checks the form of each line.
pub(crate) fn log_text(log: &str) -> Outcome<String> {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (time, stream, tag) = (fields.next(), fields.next(), fields.next());
        let (Some(time), Some("stdout" | "stderr"), Some(tag), Some(payload)) =
            (time, stream, tag, fields.next())
        else {
            return Err(format!("not a CRI log line: {line:?}").into());
        };
        if time.len() < 20 || !time.contains('T') {
            return Err(format!("not an RFC 3339 time: {time:?}").into());
        }
        text.push_str(payload);
        if tag == "F" {
            text.push('\n');
        }
    }
    Ok(text)
}
