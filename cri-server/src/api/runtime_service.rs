//! The RuntimeService of the CRI: each method is conversion, operation, conversion. Every call of it is served but
//! those of checkpoints, which say so by their names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::Span;

use super::convert::{self, field, filter, process, status, stream, verbose};
use super::events::{self, EventStream};
use super::node_status;
use super::wire::runtime_service_server::RuntimeService;
use super::wire::{
    AttachRequest, AttachResponse, CheckpointContainerRequest, CheckpointContainerResponse,
    CheckpointPodRequest, CheckpointPodResponse, ContainerStatsRequest, ContainerStatsResponse,
    ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest, CreateContainerResponse,
    ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse, GetEventsRequest,
    ListContainerStatsRequest, ListContainerStatsResponse, ListContainersRequest, ListContainersResponse,
    ListMetricDescriptorsRequest, ListMetricDescriptorsResponse, ListPodSandboxMetricsRequest,
    ListPodSandboxMetricsResponse, ListPodSandboxRequest, ListPodSandboxResponse, ListPodSandboxStatsRequest,
    ListPodSandboxStatsResponse, PodSandboxStatsRequest, PodSandboxStatsResponse, PodSandboxStatusRequest,
    PodSandboxStatusResponse, PortForwardRequest, PortForwardResponse, RemoveContainerRequest,
    RemoveContainerResponse, RemovePodSandboxRequest, RemovePodSandboxResponse, ReopenContainerLogRequest,
    ReopenContainerLogResponse, RestorePodRequest, RestorePodResponse, RunPodSandboxRequest,
    RunPodSandboxResponse, RuntimeConfigRequest, RuntimeConfigResponse, StartContainerRequest,
    StartContainerResponse, StatusRequest, StatusResponse, StopContainerRequest, StopContainerResponse,
    StopPodSandboxRequest, StopPodSandboxResponse, StreamContainerStatsRequest, StreamContainerStatsResponse,
    StreamContainersRequest, StreamContainersResponse, StreamPodSandboxMetricsRequest,
    StreamPodSandboxMetricsResponse, StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse,
    StreamPodSandboxesRequest, StreamPodSandboxesResponse, UpdateContainerResourcesRequest,
    UpdateContainerResourcesResponse, UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse,
    UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse, VersionRequest, VersionResponse,
};
use crate::container::{self, ContainerView};
use crate::error::Error;
use crate::node::Node;
use crate::sandbox::state::PodResources;
use crate::{pod_cidr, sandbox, stats};

/// Serves the pods and containers of a node.
#[derive(Debug)]
pub(super) struct RuntimeApi {
    node: Arc<Node>,
}

impl RuntimeApi {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Where writable layers lie, as ImageFsInfo says it.
    fn disk(&self) -> PathBuf {
        self.node.images.fs_info().mountpoint
    }
}

fn no_checkpoints(method: &'static str) -> Status {
    Error::Unimplemented(method).into()
}

/// A list, some items a message. What a kubelet asks for in a stream is what would not fit one message.
type Batches<T> = futures_util::stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Items of a message: far below the 16 MiB that a client takes, with labels of 128 KiB on each.
const BATCH: usize = 100;

fn batches<I, T>(items: Vec<I>, message: impl Fn(Vec<I>) -> T) -> Response<Batches<T>> {
    let mut items = items.into_iter();
    let mut all = Vec::new();
    loop {
        let batch: Vec<I> = items.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return Response::new(futures_util::stream::iter(all));
        }
        all.push(Ok(message(batch)));
    }
}

/// The sandbox that a call is about, noted in its span.
fn sandbox_id(id: String) -> Result<String, Error> {
    let id = field::id("pod_sandbox_id", id)?;
    Span::current().record("sandbox", shown(&id));
    Ok(id)
}

/// The container that a call is about, noted in its span.
fn container_id(id: String) -> Result<String, Error> {
    let id = field::id("container_id", id)?;
    Span::current().record("container", shown(&id));
    Ok(id)
}

/// As much of it as an id has digits.
fn shown(id: &str) -> &str {
    &id[..id.floor_char_boundary(64)]
}

async fn container_info(view: &Arc<ContainerView>) -> BTreeMap<String, String> {
    let view = Arc::clone(view);
    let read = move || verbose::info(&verbose::container(&view, &verbose::read_spec(&view.bundle)));
    // Only a panic of `read` can fail it; the status itself is worth more than its annex.
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    type StreamPodSandboxesStream = Batches<StreamPodSandboxesResponse>;
    type StreamContainersStream = Batches<StreamContainersResponse>;
    type StreamContainerStatsStream = Batches<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Batches<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = EventStream;
    type StreamPodSandboxMetricsStream = Batches<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(node_status::version()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let config = convert::sandbox::config(request.into_inner(), &self.node.config.load())?;
        Span::current().record("pod", format!("{}/{}", config.name.namespace, config.name.name));
        let pod_sandbox_id = sandbox::run::run(&self.node, config).await?;
        Span::current().record("sandbox", &pod_sandbox_id);
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        let id = sandbox_id(request.into_inner().pod_sandbox_id)?;
        sandbox::stop::stop(&self.node, &id).await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        let id = sandbox_id(request.into_inner().pod_sandbox_id)?;
        sandbox::remove::remove(&self.node, &id).await?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let id = sandbox_id(request.pod_sandbox_id)?;
        let view = sandbox::status::status(&self.node, &id)?;
        let info = if request.verbose { verbose::info(&verbose::sandbox(&view)) } else { BTreeMap::new() };
        let status = Some(status::sandbox(&view));
        Ok(Response::new(PodSandboxStatusResponse { status, info, ..Default::default() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = filter::sandboxes(request.into_inner().filter)?;
        let views = sandbox::list::list(&self.node, &filter);
        let items = views.iter().map(|view| status::sandbox_item(view)).collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let id = sandbox_id(request.pod_sandbox_id)?;
        let sandbox = sandbox::status::status(&self.node, &id)?;
        let config = convert::container::config(request.config, &sandbox.config)?;
        let container_id = container::create::create(&self.node, &sandbox.id, config).await?;
        Span::current().record("container", &container_id);
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        let id = container_id(request.into_inner().container_id)?;
        container::start::start(&self.node, &id).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let request = request.into_inner();
        let id = container_id(request.container_id)?;
        let grace = process::seconds("timeout", request.timeout)?;
        container::stop::stop(&self.node, &id, grace).await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        let id = container_id(request.into_inner().container_id)?;
        container::remove::remove(&self.node, &id).await?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let filter = filter::containers(request.into_inner().filter)?;
        let views = container::list::list(&self.node, &filter);
        let containers = views.iter().map(|view| status::container_item(view)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        let id = container_id(request.container_id)?;
        let view = container::status::status(&self.node, &id)?;
        let info = if request.verbose { container_info(&view).await } else { BTreeMap::new() };
        let status = Some(status::container(&view));
        Ok(Response::new(ContainerStatusResponse { status, info }))
    }

    async fn exec_sync(
        &self,
        request: Request<ExecSyncRequest>,
    ) -> Result<Response<ExecSyncResponse>, Status> {
        let exec = process::exec_sync(request.into_inner())?;
        let id = container_id(exec.container)?;
        let output = container::exec_sync::exec_sync(&self.node, &id, exec.cmd, exec.timeout).await?;
        Ok(Response::new(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.code,
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        if let Ok(network) = self.node.network() {
            let config = self.node.config.load_full();
            network.look(&config.network).await;
        }
        Ok(Response::new(node_status::status(&self.node, request.into_inner().verbose)))
    }

    async fn runtime_config(
        &self,
        _: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        Ok(Response::new(node_status::runtime_config()))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        let id = container_id(request.into_inner().container_id)?;
        let usage = stats::container(&self.node, &id).await?;
        let stats = Some(convert::stats::container(&usage, &self.disk()));
        Ok(Response::new(ContainerStatsResponse { stats }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        let filter = convert::stats::container_filter(request.into_inner().filter);
        let (usages, disk) = (stats::containers(&self.node, filter).await?, self.disk());
        let stats = usages.iter().map(|usage| convert::stats::container(usage, &disk)).collect();
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        let id = sandbox_id(request.into_inner().pod_sandbox_id)?;
        let usage = stats::sandbox(&self.node, &id).await?;
        let stats = Some(convert::stats::sandbox(&usage, &self.disk()));
        Ok(Response::new(PodSandboxStatsResponse { stats }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        let filter = convert::stats::sandbox_filter(request.into_inner().filter);
        let (usages, disk) = (stats::sandboxes(&self.node, filter).await?, self.disk());
        let stats = usages.iter().map(|usage| convert::stats::sandbox(usage, &disk)).collect();
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let request = stream::exec(request.into_inner())?;
        let id = container_id(request.container)?;
        let url = container::stream::exec(&self.node, &id, request.cmd, request.streams)?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        let request = stream::attach(request.into_inner())?;
        let id = container_id(request.container)?;
        let url = container::stream::attach(&self.node, &id, request.streams)?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        let request = stream::port_forward(request.into_inner())?;
        let id = sandbox_id(request.sandbox)?;
        let url = sandbox::port_forward::port_forward(&self.node, &id, request.ports).await?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        field::not_built("windows", request.windows.is_some())?;
        let id = container_id(request.container_id)?;
        let asked = convert::resources::update(request.linux)?;
        container::update::update(&self.node, &id, asked).await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        let id = container_id(request.into_inner().container_id)?;
        container::reopen_log::reopen(&self.node, &id).await?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let id = sandbox_id(request.pod_sandbox_id)?;
        let overhead = convert::resources::of_pod("overhead", request.overhead)?;
        let resources = convert::resources::of_pod("resources", request.resources)?;
        sandbox::update::update(&self.node, &id, PodResources { overhead, resources }).await?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let filter = filter::sandboxes(request.into_inner().filter)?;
        let views = sandbox::list::list(&self.node, &filter);
        let items = views.iter().map(|view| status::sandbox_item(view)).collect();
        Ok(batches(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let filter = filter::containers(request.into_inner().filter)?;
        let views = container::list::list(&self.node, &filter);
        let items = views.iter().map(|view| status::container_item(view)).collect();
        Ok(batches(items, |containers| StreamContainersResponse { containers }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let filter = convert::stats::container_filter(request.into_inner().filter);
        let (usages, disk) = (stats::containers(&self.node, filter).await?, self.disk());
        let items = usages.iter().map(|usage| convert::stats::container(usage, &disk)).collect();
        Ok(batches(items, |container_stats| StreamContainerStatsResponse { container_stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let filter = convert::stats::sandbox_filter(request.into_inner().filter);
        let (usages, disk) = (stats::sandboxes(&self.node, filter).await?, self.disk());
        let items = usages.iter().map(|usage| convert::stats::sandbox(usage, &disk)).collect();
        Ok(batches(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        let descriptors = convert::metrics::descriptors();
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        let (pods, disk) = stats::details(&self.node).await?;
        let pod_metrics = pods.iter().map(|pod| convert::metrics::sandbox(pod, &disk)).collect();
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let (pods, disk) = stats::details(&self.node).await?;
        let items = pods.iter().map(|pod| convert::metrics::sandbox(pod, &disk)).collect();
        Ok(batches(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        Ok(Response::new(events::stream(&self.node)))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        let ranges = field::pod_cidrs(request.into_inner().runtime_config)?;
        pod_cidr::update(&self.node, ranges).await?;
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    // Never built: a checkpoint that is restored brings its own rights, files and mounts (security-bar.md A17, A39).

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        Err(no_checkpoints("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Result<Response<CheckpointPodResponse>, Status> {
        Err(no_checkpoints("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _: Request<RestorePodRequest>,
    ) -> Result<Response<RestorePodResponse>, Status> {
        Err(no_checkpoints("RestorePod"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn a_stream_has_each_item_once_and_ends() {
        for (count, messages) in [(0, 0), (1, 1), (BATCH, 1), (BATCH + 1, 2), (3 * BATCH, 3)] {
            let stream = batches((0..count).collect(), |items: Vec<usize>| items).into_inner();
            let all: Vec<_> = stream.map(|batch| batch.unwrap()).collect().await;
            assert_eq!(all.len(), messages, "{count}");
            assert_eq!(all.concat(), (0..count).collect::<Vec<_>>());
        }
    }
}
