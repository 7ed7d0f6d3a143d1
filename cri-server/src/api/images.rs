//! The image service of Cove's own command line: what the CRI has no words for. Served beside it, on the same sockets; and,
//! where no daemon runs, by the command itself for one connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::DuplexStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

use super::convert::own;
use super::own as wire;
use super::own::images_server::{Images as Service, ImagesServer};
use super::server::MAX_MESSAGE;
use crate::error::Error;
use crate::image::{Auth, Choices, Image, ImageError, Images, Progress};

/// How often progress is told: as often as a person can follow.
const TICK: Duration = Duration::from_millis(150);

/// Serves the images of a store.
#[derive(Debug, Clone)]
pub(super) struct OwnImages {
    images: Images,
}

/// The service, for a server.
pub(super) fn service(images: Images) -> ImagesServer<OwnImages> {
    ImagesServer::new(OwnImages { images })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Serves one connection, until it ends.
pub(crate) async fn serve_images(
    images: Images,
    connection: DuplexStream,
) -> Result<(), tonic::transport::Error> {
    let incoming = stream::once(async { Ok::<_, std::io::Error>(connection) });
    Server::builder().add_service(service(images)).serve_with_incoming(incoming).await
}

type Events = Pin<Box<dyn Stream<Item = Result<wire::Event, Status>> + Send>>;
type Work = Pin<Box<dyn Future<Output = Result<Vec<Arc<Image>>, ImageError>> + Send>>;

/// Progress again and again, then what came of the work. Dropped, it ends the work.
fn events(progress: Arc<Progress>, work: Work) -> Events {
    let begin = Some((progress, work, tokio::time::interval(TICK)));
    Box::pin(stream::unfold(begin, |state| async move {
        let (progress, mut work, mut tick) = state?;
        tokio::select! {
            done = &mut work => {
                let event = done.map(|images| own::finished(&progress, &images));
                Some((event.map_err(|error| Status::from(Error::from(error))), None))
            }
            _ = tick.tick() => {
                let event = wire::Event { progress: Some(own::progress(&progress)), finished: None };
                Some((Ok(event), Some((progress, work, tick))))
            }
        }
    }))
}

#[tonic::async_trait]
impl Service for OwnImages {
    type PullStream = Events;
    type ImportStream = Events;
    type RepairStream = Events;

    async fn list(&self, _: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let images = self.images.list(None).iter().map(|image| own::image(image)).collect();
        Ok(Response::new(wire::ListResponse { images }))
    }

    async fn pulls(&self, _: Request<wire::PullsRequest>) -> Result<Response<wire::PullsResponse>, Status> {
        let pulls = self.images.pulls().iter().map(|pull| own::progress(pull)).collect();
        Ok(Response::new(wire::PullsResponse { pulls }))
    }

    async fn pull(&self, request: Request<wire::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let reference = own::reference("reference", request.reference)?;
        Span::current().record("image", &reference);
        let auth = (!request.username.is_empty()).then(|| Auth {
            username: request.username,
            password: request.password.into(),
            ..Auth::default()
        });
        // The progress is known once the reference was read, which is before anybody is asked.
        let (seen, watched) = tokio::sync::oneshot::channel();
        let images = self.images.clone();
        let mut work: Work = Box::pin(async move {
            let watch = |progress| drop(seen.send(progress));
            images.pull_watched(&reference, auth, watch).await.map(|image| vec![image])
        });
        tokio::select! {
            biased;
            done = &mut work => {
                let progress = Progress::new(String::new());
                let images = done.map_err(Error::from)?;
                let event = Ok(own::finished(&progress, &images));
                Ok(Response::new(Box::pin(stream::once(async { event }))))
            }
            Ok(progress) = watched => Ok(Response::new(events(progress, work))),
        }
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveRequest>,
    ) -> Result<Response<wire::RemoveResponse>, Status> {
        let reference = own::reference("reference", request.into_inner().reference)?;
        Span::current().record("image", &reference);
        self.images.remove(&reference).await.map_err(Error::from)?;
        Ok(Response::new(wire::RemoveResponse {}))
    }

    async fn import(
        &self,
        request: Request<Streaming<wire::ImportRequest>>,
    ) -> Result<Response<Self::ImportStream>, Status> {
        let mut requests = request.into_inner();
        let Some(first) = requests.message().await? else {
            return Err(Error::invalid("import", "has no first message").into());
        };
        let choices = Choices {
            pinned: first.pinned,
            name: if first.name.is_empty() { None } else { Some(own::reference("name", first.name)?) },
        };
        let progress = Arc::new(Progress::new("import".to_owned()));
        let (images, watched) = (self.images.clone(), progress.clone());
        // A sender that goes is no end of the archive: the call is dropped then, and the work with it.
        let bytes = requests.map(|request| request.map(|request| request.data));
        let archive = stream::once(async { Ok(first.data) }).chain(bytes);
        let work = Box::pin(async move { images.import(archive, choices, watched).await });
        Ok(Response::new(events(progress, work)))
    }

    async fn check(&self, _: Request<wire::CheckRequest>) -> Result<Response<wire::CheckResponse>, Status> {
        let findings = self.images.check().await.map_err(Error::from)?;
        Ok(Response::new(wire::CheckResponse { findings: findings.into_iter().map(own::finding).collect() }))
    }

    async fn repair(
        &self,
        request: Request<wire::RepairRequest>,
    ) -> Result<Response<Self::RepairStream>, Status> {
        let id = own::reference("id", request.into_inner().id)?;
        Span::current().record("image", &id);
        let progress = Arc::new(Progress::new(id.clone()));
        let (images, watched) = (self.images.clone(), progress.clone());
        let work = Box::pin(async move { images.repair(&id, watched).await.map(|image| vec![image]) });
        Ok(Response::new(events(progress, work)))
    }
}
