//! What is wrong with a request is said by its field; what is wrong with the world by its step, object and errno.

use cove_e2e::image::{self, Layer};
use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;
use serde_json::json;
use tonic::Code;

use crate::ensure::Refused;
use crate::world::World;

cases!(
    refuses_wrong_sandboxes_by_field,
    refuses_wrong_containers_by_field,
    tells_why_a_pull_failed,
    tells_an_unknown_user_and_works_once_it_is_known,
    tells_a_full_disk,
    refuses_generated_files_with_extra_lines,
    answers_every_call_whatever_its_fields,
);

type SandboxChange = Box<dyn Fn(&mut PodSandboxConfig)>;

async fn refuses_wrong_sandboxes_by_field(world: &mut World) -> Outcome {
    let cases: Vec<(&str, SandboxChange)> = vec![
        ("metadata", Box::new(|c| c.metadata = None)),
        ("metadata.name", Box::new(|c| c.metadata.get_or_insert_default().name.clear())),
        ("metadata.uid", Box::new(|c| c.metadata.get_or_insert_default().uid = "../../etc".into())),
        ("metadata.namespace", Box::new(|c| c.metadata.get_or_insert_default().namespace = "a/b".into())),
        ("hostname", Box::new(|c| c.hostname = "a\nb".into())),
        ("hostname", Box::new(|c| c.hostname = "x".repeat(65))),
        ("log_directory", Box::new(|c| c.log_directory = "relative".into())),
        ("log_directory", Box::new(|c| c.log_directory = "/var/../etc".into())),
        ("cgroup_parent", Box::new(|c| c.linux.get_or_insert_default().cgroup_parent = "/a/../..".into())),
        (
            "sysctls",
            Box::new(|c| {
                drop(c.linux.get_or_insert_default().sysctls.insert("kernel.core_pattern".into(), "x".into()))
            }),
        ),
        (
            "userns_options",
            Box::new(|c| {
                pod::namespaces(c).userns_options =
                    Some(UserNamespace { mode: NamespaceMode::Pod.into(), ..Default::default() })
            }),
        ),
        ("network", Box::new(|c| pod::namespaces(c).network = NamespaceMode::Container.into())),
    ];
    for (field, change) in cases {
        let mut config = world.pod("wrong");
        change(&mut config);
        let error = world.try_run_pod(&config).await.err().ok_or(format!("{field}: accepted"))?;
        ensure!(
            error.code() == Code::InvalidArgument && error.message().contains(field),
            "{field}: {error:?}"
        );
    }
    let request =
        RunPodSandboxRequest { config: Some(world.pod("handler")), runtime_handler: "unheard-of".into() };
    let error = world.cri.runtime.run_pod_sandbox(request).await.refused()?;
    ensure!(error.message().contains("unheard-of"), "{error:?}");
    ensure!(world.pods().await?.is_empty(), "nothing was made");
    Ok(())
}

type ContainerChange = Box<dyn Fn(&mut ContainerConfig)>;

async fn refuses_wrong_containers_by_field(world: &mut World) -> Outcome {
    let cases: Vec<(&str, ContainerChange)> = vec![
        ("metadata", Box::new(|c| c.metadata = None)),
        ("image", Box::new(|c| c.image = None)),
        ("log_path", Box::new(|c| c.log_path = "../escape.log".into())),
        ("log_path", Box::new(|c| c.log_path = "/absolute.log".into())),
        (
            "mounts[0].container_path",
            Box::new(|c| c.mounts.push(Mount { host_path: "/tmp".into(), ..Default::default() })),
        ),
        (
            "capabilities",
            Box::new(|c| {
                pod::security(c)
                    .capabilities
                    .get_or_insert_default()
                    .add_capabilities
                    .push("CAP_NO_SUCH".into())
            }),
        ),
        ("run_as_group", Box::new(|c| pod::security(c).run_as_group = Some(Int64Value { value: 5 }))),
        (
            "run_as_user",
            Box::new(|c| pod::security(c).run_as_user = Some(Int64Value { value: 4_294_967_296 })),
        ),
        ("privileged", Box::new(|c| pod::security(c).privileged = true)),
        (
            "seccomp",
            Box::new(|c| {
                pod::security(c).seccomp =
                    Some(SecurityProfile { profile_type: 2, localhost_ref: String::new() })
            }),
        ),
    ];
    let config = world.pod("wrong-containers");
    let id = world.run_pod(&config).await?;
    for (field, change) in cases {
        let mut container = world.script("wrong", "true");
        change(&mut container);
        let error = world.create(&id, &config, &container).await.err().ok_or(format!("{field}: accepted"))?;
        ensure!(
            error.code() == Code::InvalidArgument && error.message().contains(field),
            "{field}: {error:?}"
        );
    }
    let mut absent = world.script("absent", "true");
    absent.image.get_or_insert_default().image = "127.0.0.1:1/no/image:1".into();
    let error = world.create(&id, &config, &absent).await.refused()?;
    ensure!(error.code() == Code::NotFound && error.message().contains("no/image"), "{error:?}");
    let error = world.create(&"0".repeat(64), &config, &world.script("x", "true")).await.refused()?;
    ensure_eq!(error.code(), Code::NotFound);
    let nothing = image::build(vec![Layer::new().dir("empty", 0o755)], json!({}))?;
    let reference = world.registry.push("e2e/nothing", "1", &nothing)?;
    world.pull(&reference).await?;
    let error = world.create(&id, &config, &pod::container("nothing", &reference, &[])).await.refused()?;
    ensure!(error.message().contains("no command specified"), "{error:?}");
    ensure!(world.containers().await?.is_empty(), "nothing was made");
    Ok(())
}

async fn tells_why_a_pull_failed(world: &mut World) -> Outcome {
    let host = world.registry.host.clone();
    let zeros = format!("sha256:{}", "0".repeat(64));
    let short = format!("{host}/e2e/busybox@sha256:12");
    let cases = [
        (format!("{host}/e2e/no-such-image:1"), &["no-such-image", "404"][..]),
        (format!("{host}/e2e/busybox@{zeros}"), &[&zeros, "404"]),
        ("127.0.0.1:1/e2e/busybox:1".into(), &["RegistryUnavailable", "127.0.0.1:1", "refused"]),
        ("UPPER/case:1".into(), &["UPPER"]),
        (short, &["digest"]),
        (format!("{host}/e2e/../../etc:1"), &["reference"]),
    ];
    for (reference, parts) in cases {
        let error = world.pull(&reference).await.err().ok_or(format!("{reference}: pulled"))?.to_string();
        for part in parts {
            ensure!(error.contains(part), "{reference}: no {part:?} in {error}");
        }
    }
    // A layer whose blob is not what its digest says cannot be pushed to a real registry; a wrong diff ID can.
    let mut image = image::build(vec![Layer::new().file("a", 0o644, "a")], json!({}))?;
    let config = image.blobs.pop().ok_or("no config")?;
    let mut document: serde_json::Value = serde_json::from_slice(&config.bytes)?;
    document["rootfs"]["diff_ids"] = json!([zeros]);
    let config = image::Blob::new(serde_json::to_vec(&document)?);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes)?;
    manifest["config"] = image::descriptor("application/vnd.oci.image.config.v1+json", &config);
    image.manifest = image::Blob::new(serde_json::to_vec(&manifest)?);
    image.blobs.push(config);
    let reference = world.registry.push("e2e/wrong-diff-id", "1", &image)?;
    let error = world.pull(&reference).await.err().ok_or("pulled")?.to_string();
    ensure!(error.contains(&zeros), "{error}");
    let request = ImageStatusRequest {
        image: Some(ImageSpec { image: reference, ..Default::default() }),
        verbose: false,
    };
    ensure!(
        world.cri.images.image_status(request).await?.into_inner().image.is_none(),
        "listed all the same"
    );
    Ok(())
}

async fn tells_an_unknown_user_and_works_once_it_is_known(world: &mut World) -> Outcome {
    let config = world.pod("user");
    let id = world.run_pod(&config).await?;
    let mut container = world.script("who", "id -u");
    pod::security(&mut container).run_as_username = "nobody-knows".into();
    let created = world.create(&id, &config, &container).await?;
    let error = world.start(&created).await.refused()?;
    ensure!(error.message().contains("nobody-knows"), "{error:?}");
    ensure_eq!(world.status(&created).await?.reason, "StartError");
    world.remove(&created).await?;
    pod::security(&mut container).run_as_username = "app".into();
    let (status, text) = world.output(&id, &config, &container).await?;
    ensure_eq!((status.exit_code, text.as_str()), (0, "1000\n"));
    Ok(())
}

async fn tells_a_full_disk(world: &mut World) -> Outcome {
    let Some(place) = world.place.clone() else { return Ok(()) };
    // The image store on a tmpfs of 4 MiB: busybox fits, 8 MiB more do not.
    let big = image::build(vec![Layer::new().file("big", 0o644, vec![9; 8 << 20])], json!({}))?;
    let reference = world.registry.push("e2e/too-big", "1", &big)?;
    world.daemon.take().ok_or("no daemon")?.stop()?;
    let images = place.root.join("images");
    let mount = |args: &[&str]| -> Outcome {
        let output = std::process::Command::new(args[0]).args(&args[1..]).arg(&images).output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"])?;
    let outcome = async {
        world.resume(&[]).await?;
        let error = world.pull(&reference).await.err().ok_or("8 MiB fit into 4")?.to_string();
        ensure!(error.contains("No space left") && error.contains("images"), "{error}");
        mount(&["mount", "-o", "remount,size=64m"])?;
        ensure_eq!(world.pull(&reference).await?, big.id);
        world.daemon.take().ok_or("no daemon")?.stop()
    }
    .await;
    mount(&["umount", "-l"])?;
    outcome?;
    world.resume(&[]).await
}

async fn refuses_generated_files_with_extra_lines(world: &mut World) -> Outcome {
    for bad in ["a\nb", "a\rb", "a\0b"] {
        for part in 0..3 {
            let mut config = world.pod("dns");
            let mut dns = DnsConfig::default();
            [&mut dns.servers, &mut dns.searches, &mut dns.options][part].push(bad.into());
            config.dns_config = Some(dns);
            let error =
                world.try_run_pod(&config).await.err().ok_or(format!("{bad:?} in {part}: accepted"))?;
            ensure!(
                error.code() == Code::InvalidArgument && error.message().contains("dns_config"),
                "{error:?}"
            );
        }
    }
    let mut config = world.pod("literal");
    config.dns_config = Some(DnsConfig { options: vec!["a\\nb".into()], ..Default::default() });
    let id = world.run_pod(&config).await?;
    let (_, text) = world.output(&id, &config, &world.script("cat", "cat /etc/resolv.conf")).await?;
    ensure_eq!(text, "options a\\nb\n");
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "one line a call")]
/// security-bar.md E59: calls without any field, and with ids that are none.
async fn answers_every_call_whatever_its_fields(world: &mut World) -> Outcome {
    let config = world.pod("bystander");
    let pod = world.run_pod(&config).await?;
    let (mut refused, mut answered) = (0, 0);
    macro_rules! call {
        ($client:ident, $($method:ident($request:expr)),* $(,)?) => {$(
            let call = world.cri.$client.$method($request);
            match tokio::time::timeout(std::time::Duration::from_secs(10), call).await {
                Ok(Ok(_)) => answered += 1,
                Ok(Err(status)) => {
                    let code = status.code();
                    let internal = matches!(code, tonic::Code::Internal | tonic::Code::Unavailable);
                    ensure!(!internal, "{}: {status:?}", stringify!($method));
                    ensure!(status.message().len() < 8192, "{}: a long answer", stringify!($method));
                    refused += 1;
                }
                Err(_) => return Err(format!("{} hangs", stringify!($method)).into()),
            }
        )*};
    }
    call!(
        runtime,
        version(VersionRequest::default()),
        status(StatusRequest::default()),
        run_pod_sandbox(RunPodSandboxRequest::default()),
        create_container(CreateContainerRequest::default()),
        list_pod_sandbox(ListPodSandboxRequest::default()),
        list_containers(ListContainersRequest::default()),
        list_container_stats(ListContainerStatsRequest::default()),
        list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()),
        update_runtime_config(UpdateRuntimeConfigRequest::default()),
        list_metric_descriptors(ListMetricDescriptorsRequest::default()),
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()),
        runtime_config(RuntimeConfigRequest::default()),
        checkpoint_container(CheckpointContainerRequest::default()),
    );
    call!(
        images,
        list_images(ListImagesRequest::default()),
        image_status(ImageStatusRequest::default()),
        pull_image(PullImageRequest::default()),
        remove_image(RemoveImageRequest::default()),
        image_fs_info(ImageFsInfoRequest::default()),
    );
    let long = "f".repeat(1 << 20);
    for id in ["", "../../../etc", "\n\u{0}\u{1b}[2J", "\u{202e}", long.as_str()] {
        let of = || id.to_owned();
        call!(
            runtime,
            stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: of() }),
            remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: of() }),
            pod_sandbox_status(PodSandboxStatusRequest { pod_sandbox_id: of(), verbose: true }),
            start_container(StartContainerRequest { container_id: of() }),
            stop_container(StopContainerRequest { container_id: of(), timeout: i64::MIN }),
            remove_container(RemoveContainerRequest { container_id: of() }),
            container_status(ContainerStatusRequest { container_id: of(), verbose: true }),
            update_container_resources(UpdateContainerResourcesRequest {
                container_id: of(),
                ..Default::default()
            }),
            reopen_container_log(ReopenContainerLogRequest { container_id: of() }),
            exec_sync(ExecSyncRequest { container_id: of(), cmd: vec![of()], timeout: i64::MAX }),
            exec(ExecRequest { container_id: of(), cmd: vec![of()], stdin: true, ..Default::default() }),
            attach(AttachRequest { container_id: of(), stdin: true, ..Default::default() }),
            port_forward(PortForwardRequest { pod_sandbox_id: of(), port: vec![i32::MIN] }),
            container_stats(ContainerStatsRequest { container_id: of() }),
            pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: of() }),
        );
        let image = || Some(ImageSpec { image: of(), ..Default::default() });
        call!(
            images,
            image_status(ImageStatusRequest { image: image(), verbose: true }),
            pull_image(PullImageRequest { image: image(), ..Default::default() }),
            remove_image(RemoveImageRequest { image: image() }),
        );
    }
    eprintln!("{answered} answered, {refused} refused");
    ensure!(refused > 60, "{refused} were refused");
    let log = std::fs::read_to_string(world.place.as_ref().ok_or("needs a daemon of its own")?.log())?;
    ensure!(!log.contains("panicked"), "the daemon panicked");
    ensure!(!log.contains('\u{1b}') && !log.contains('\u{202e}'), "the log holds control characters");
    ensure_eq!(world.pod_status(&pod).await?.state(), PodSandboxState::SandboxReady);
    Ok(())
}
