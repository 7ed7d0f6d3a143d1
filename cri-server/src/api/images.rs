//! The image service of Cove's own command line: what the CRI has no words for. Served beside it, on the same sockets; and,
//! where no daemon runs, by the command itself for one connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use hyper::body::Bytes;
use tokio::io::DuplexStream;
use tokio::sync::mpsc::Receiver;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

use super::convert::own;
use super::own as wire;
use super::own::images_server::{Images as Service, ImagesServer};
use super::server::MAX_MESSAGE;
use crate::error::Error;
use crate::image::{Auth, Checked, Choices, Image, ImageError, Images, Progress};

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

/// The most images of one export.
const MAX_EXPORTED: usize = 1024;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Events = Answers<wire::Event>;
type Work<T = Vec<Arc<Image>>> = Pin<Box<dyn Future<Output = Result<T, ImageError>> + Send>>;

/// Progress again and again, then what came of the work. Dropped, it ends the work. `event` makes an answer of either.
fn answers<T: Send + 'static, E: Send + 'static>(
    progress: Arc<Progress>,
    work: Work<T>,
    event: fn(wire::Progress, Option<T>) -> E,
) -> Answers<E> {
    let begin = Some((progress, work, tokio::time::interval(TICK)));
    Box::pin(stream::unfold(begin, move |state| async move {
        let (progress, mut work, mut tick) = state?;
        tokio::select! {
            done = &mut work => {
                let event = done.map(|done| event(own::progress(&progress), Some(done)));
                Some((event.map_err(|error| Status::from(Error::from(error))), None))
            }
            _ = tick.tick() => {
                Some((Ok(event(own::progress(&progress), None)), Some((progress, work, tick))))
            }
        }
    }))
}

/// The same for work that ends with images.
fn events(progress: Arc<Progress>, work: Work) -> Events {
    answers(progress, work, event)
}

fn event(progress: wire::Progress, images: Option<Vec<Arc<Image>>>) -> wire::Event {
    wire::Event { progress: Some(progress), finished: images.map(|images| own::finished(&images)) }
}

/// An archive as it comes, progress between its pieces, and what came of the work at the end. Dropped, it ends the work.
fn pieces(progress: Arc<Progress>, pieces: Receiver<Bytes>, work: Work) -> Answers<wire::ExportPiece> {
    let begin = Some((progress, pieces, work, tokio::time::interval(TICK)));
    Box::pin(stream::unfold(begin, |state| async move {
        let (progress, mut pieces, work, mut tick) = state?;
        let piece = wire::ExportPiece::default();
        let next = tokio::select! {
            next = pieces.recv() => next,
            _ = tick.tick() => {
                let piece = wire::ExportPiece { progress: Some(own::progress(&progress)), ..piece };
                return Some((Ok(piece), Some((progress, pieces, work, tick))));
            }
        };
        if let Some(data) = next {
            return Some((Ok(wire::ExportPiece { data, ..piece }), Some((progress, pieces, work, tick))));
        }
        let piece = work.await.map(|images| wire::ExportPiece {
            progress: Some(own::progress(&progress)),
            finished: Some(own::finished(&images)),
            ..piece
        });
        Some((piece.map_err(|error| Status::from(Error::from(error))), None))
    }))
}

/// Who asks a registry; only `registry`, if it is named.
fn auth(username: String, password: String, registry: String) -> Option<Auth> {
    let is_anonymous = username.is_empty();
    let auth = Auth { username, password: password.into(), server_address: registry, ..Auth::default() };
    (!is_anonymous).then_some(auth)
}

#[tonic::async_trait]
impl Service for OwnImages {
    type PullStream = Events;
    type PresentStream = Pin<Box<dyn Stream<Item = Result<wire::PresentResponse, Status>> + Send>>;
    type ImportStream = Events;
    type RepairStream = Events;
    type CheckStream = Answers<wire::CheckEvent>;
    type ExportStream = Answers<wire::ExportPiece>;

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
        let auth = auth(request.username, request.password, String::new());
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
                let event = Ok(event(own::progress(&progress), Some(images)));
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

    async fn present(
        &self,
        request: Request<wire::PresentRequest>,
    ) -> Result<Response<Self::PresentStream>, Status> {
        let asked = own::diff_ids(&request.into_inner().diff_ids)?;
        let present = self.images.present(&asked);
        let diff_ids = present.diff_ids.iter().map(ToString::to_string).collect();
        let answer = stream::once(async { Ok(wire::PresentResponse { diff_ids }) });
        // What is there stays until whoever asked ends the call.
        let held = stream::unfold(present, |present| async move {
            let _held = present;
            std::future::pending().await
        });
        Ok(Response::new(Box::pin(answer.chain(held))))
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

    async fn export(
        &self,
        request: Request<wire::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let references = request.into_inner().references;
        if references.is_empty() || references.len() > MAX_EXPORTED {
            let reason = format!("must be 1 to {MAX_EXPORTED}");
            return Err(Error::invalid("references", reason).into());
        }
        let references = references.into_iter().map(|text| own::reference("references", text));
        let references = references.collect::<Result<Vec<_>, _>>()?;
        if let [one] = &references[..] {
            Span::current().record("image", one);
        }
        let progress = Arc::new(Progress::new("export".to_owned()));
        let (archive, work) = self.images.export(references, progress.clone());
        Ok(Response::new(pieces(progress, archive, Box::pin(work))))
    }

    async fn check(
        &self,
        request: Request<wire::CheckRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let content = request.into_inner().content;
        let progress = Arc::new(Progress::new("check".to_owned()));
        let (images, watched) = (self.images.clone(), progress.clone());
        let work: Work<Checked> = Box::pin(async move { images.check(content, watched).await });
        let event = |progress, checked: Option<Checked>| wire::CheckEvent {
            progress: Some(progress),
            checked: checked.map(own::checked),
        };
        Ok(Response::new(answers(progress, work, event)))
    }

    async fn repair(
        &self,
        request: Request<wire::RepairRequest>,
    ) -> Result<Response<Self::RepairStream>, Status> {
        let request = request.into_inner();
        let (id, content) = (own::reference("id", request.id)?, request.content);
        Span::current().record("image", &id);
        if !request.username.is_empty() && request.registry.is_empty() {
            // The image's record says who is asked, and whoever sends this need not know it.
            return Err(Error::invalid("registry", "is empty: a password is for one registry").into());
        }
        let auth = auth(request.username, request.password, request.registry);
        let progress = Arc::new(Progress::new(id.clone()));
        let (images, watched) = (self.images.clone(), progress.clone());
        let work = Box::pin(async move {
            images.repair(&id, content, auth.as_ref(), watched).await.map(|image| vec![image])
        });
        Ok(Response::new(events(progress, work)))
    }
}
