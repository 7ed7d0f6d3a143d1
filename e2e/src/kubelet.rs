//! What a kubelet asks for, in one line each.

use k8s_cri::v1::*;
use tonic::Status;

use crate::client::Cri;

/// A client with the calls that the tools need.
#[derive(Debug, Clone)]
pub struct Kubelet(pub Cri);

impl Kubelet {
    /// PullImage.
    pub async fn pull(&mut self, reference: &str) -> Result<String, Status> {
        let image = Some(ImageSpec { image: reference.into(), ..Default::default() });
        let request = PullImageRequest { image, ..Default::default() };
        Ok(self.0.images.pull_image(request).await?.into_inner().image_ref)
    }

    /// RunPodSandbox.
    pub async fn run(&mut self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.0.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// CreateContainer.
    pub async fn create(
        &mut self,
        sandbox: &str,
        pod: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        Ok(self.0.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start(&mut self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.into() };
        self.0.runtime.start_container(request).await.map(drop)
    }

    /// ContainerStatus.
    pub async fn status(&mut self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let status = self.0.runtime.container_status(request).await?.into_inner().status;
        status.ok_or_else(|| Status::internal("a status without a status"))
    }

    /// Pid of a running container on the host, from verbose status.
    pub async fn pid(&mut self, id: &str) -> Result<i32, Status> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: true };
        let info = self.0.runtime.container_status(request).await?.into_inner().info;
        let info: serde_json::Value =
            info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.ok_or_else(|| Status::internal("verbose status tells no pid"))
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&mut self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let status = self.0.runtime.pod_sandbox_status(request).await?.into_inner().status;
        status.ok_or_else(|| Status::internal("a status without a status"))
    }

    /// ExecSync: exit code and stdout.
    pub async fn exec(&mut self, id: &str, cmd: &[&str]) -> Result<(i32, Vec<u8>), Status> {
        let cmd = cmd.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout: 30 };
        let answer = self.0.runtime.exec_sync(request).await?.into_inner();
        Ok((answer.exit_code, answer.stdout))
    }

    /// StopContainer.
    pub async fn stop(&mut self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.into(), timeout };
        self.0.runtime.stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&mut self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.into() };
        self.0.runtime.remove_container(request).await.map(drop)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.0.runtime.stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&mut self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.0.runtime.remove_pod_sandbox(request).await.map(drop)
    }

    /// Ids of all pods.
    pub async fn pods(&mut self) -> Result<Vec<String>, Status> {
        let request = ListPodSandboxRequest { filter: None };
        let items = self.0.runtime.list_pod_sandbox(request).await?.into_inner().items;
        Ok(items.into_iter().map(|pod| pod.id).collect())
    }

    /// Ids of all containers.
    pub async fn containers(&mut self) -> Result<Vec<String>, Status> {
        let request = ListContainersRequest { filter: None };
        let containers = self.0.runtime.list_containers(request).await?.into_inner().containers;
        Ok(containers.into_iter().map(|container| container.id).collect())
    }
}
