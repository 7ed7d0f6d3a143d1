//! Image volumes: the images that a container's mounts name. They are found when it is created, and stay as long as its
//! record does.

use std::path::PathBuf;

use cove_runtime::build::image_volume;
use cove_runtime::build::request::ImageVolume;
use serde::{Deserialize, Serialize};

use super::config::ContainerConfig;
use super::record::ContainerIdentity;
use crate::error::Error;
use crate::image::{Images, Lease};

/// The image of one mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeImage {
    /// Which of the request's mounts.
    pub mount: usize,
    /// The image's id.
    pub image_id: String,
    /// Layer directories, the uppermost first.
    pub layers: Vec<PathBuf>,
}

/// Finds the image of each mount that names one, and keeps it while its lease lives.
pub fn find(images: &Images, config: &ContainerConfig) -> Result<Vec<(VolumeImage, Lease)>, Error> {
    let mut found = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let Some(asked) = &mount.image else { continue };
        let lease = images.lease(&asked.image).map_err(|error| of_image_volume(index, error.into()))?;
        let (image_id, layers) = (lease.image.id.clone(), lease.image.layers.clone());
        found.push((VolumeImage { mount: index, image_id, layers }, lease));
    }
    Ok(found)
}

/// Refuses a sub path that its image does not have. Blocking; looks at the image store alone.
pub fn check(config: &ContainerConfig, images: &[VolumeImage]) -> Result<(), Error> {
    for image in images {
        let asked = config.mounts.get(image.mount).and_then(|mount| mount.image.as_ref());
        let Some(asked) = asked.filter(|asked| !asked.sub_path.is_empty()) else { continue };
        let volume = ImageVolume { lower: image.layers.clone(), sub_path: PathBuf::from(&asked.sub_path) };
        image_volume::check(&volume).map_err(|failure| of_image_volume(image.mount, failure.into()))?;
    }
    Ok(())
}

/// The images that a container's files come from are kept until its record is gone.
pub fn hold(images: &Images, identity: &ContainerIdentity) {
    for image in [&identity.image_id].into_iter().chain(identity.volume_images.iter().map(|of| &of.image_id))
    {
        images.hold(image, &identity.id);
    }
}

fn of_image_volume(mount: usize, error: Error) -> Error {
    Error::ImageVolume { mount: format!("config.mounts[{mount}]"), source: Box::new(error) }
}
