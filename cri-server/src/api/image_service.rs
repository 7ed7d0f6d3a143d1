//! The ImageService of the CRI: each method is conversion, operation, conversion.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::Span;

use super::convert::{image, verbose};
use super::wire::image_service_server::ImageService;
use super::wire::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse,
};
use crate::error::Error;
use crate::node::Node;

/// Images of a message of StreamImages.
const BATCH: usize = 100;

/// Serves the images of a node.
#[derive(Debug)]
pub(super) struct ImageApi {
    node: Arc<Node>,
}

impl ImageApi {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    type StreamImagesStream =
        futures_util::stream::Iter<std::vec::IntoIter<Result<StreamImagesResponse, Status>>>;

    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        let filter = image::filter(request.into_inner().filter);
        let images = self.node.images.list(filter.as_deref());
        Ok(Response::new(ListImagesResponse { images: images.iter().map(|one| image::image(one)).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let reference = image::reference(request.image)?;
        let Some(found) = self.node.images.status(&reference) else {
            return Ok(Response::new(ImageStatusResponse::default()));
        };
        let config = match request.verbose {
            true => self.node.images.config(&found).await.map_err(Error::from)?,
            false => None,
        };
        let info = config.map(|config| verbose::info(&verbose::image(&config))).unwrap_or_default();
        Ok(Response::new(ImageStatusResponse { image: Some(image::image(&found)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        let request = request.into_inner();
        let reference = image::reference(request.image)?;
        Span::current().record("image", &reference);
        let auth = request.auth.map(image::auth);
        let pulled = self.node.images.pull(&reference, auth).await.map_err(Error::from)?;
        Ok(Response::new(PullImageResponse { image_ref: pulled.id.clone() }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let reference = image::reference(request.into_inner().image)?;
        Span::current().record("image", &reference);
        self.node.images.remove(&reference).await.map_err(Error::from)?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        // Writable layers lie on the same disk as the images.
        let usage = vec![image::fs_info(&self.node.images.fs_info())];
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: usage.clone(),
            container_filesystems: usage,
        }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = image::filter(request.into_inner().filter);
        let images: Vec<_> =
            self.node.images.list(filter.as_deref()).iter().map(|one| image::image(one)).collect();
        let message = |images: &[_]| Ok(StreamImagesResponse { images: images.to_vec() });
        let batches: Vec<_> = images.chunks(BATCH).map(message).collect();
        Ok(Response::new(futures_util::stream::iter(batches)))
    }
}
