//! The members of an archive, taken in while it is read once from front to back. What each is can be known late: `docker save`
//! and layouts may name their layers before or after the documents that say what they are. So what is as small as a
//! document is put by on disk, and what is larger can only be a layer: it is unpacked at once, by the digest that comes out
//! of it. Where the documents came first, what is present or of no use is passed over.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use cove_layer::{
    Algorithm, Archive, Compression, Digest, HashingReader, LayerError, Limits, Member, MemberKind,
};

use super::ImageError;
use super::bounds::Bounds;
use super::layer::{errno, limit_key, record};
use super::lease::Pins;
use super::links::Links;
use super::manifest::Descriptor;
use super::plan::{self, BLOBS, DOCKER, Documents, INDEX, Plan, PlannedLayer, named_by, shown};
use super::progress::{LayerProgress, LayerState, Progress};
use super::stage::{Stage, StagedLayer};
use super::store::Store;

/// What a member is.
#[derive(Debug)]
enum Content {
    /// Put by.
    Small { path: PathBuf, size: u64 },
    /// Unpacked.
    Layer(Unpacked),
    /// It was to be unpacked, and is no layer, or a bad one.
    Bad(ImageError),
    /// Passed over, since the layer is in the store or no image names it.
    PassedOver,
}

/// A member that was unpacked.
#[derive(Debug, Clone)]
pub(super) struct Unpacked {
    /// What came out.
    pub(super) staged: Arc<StagedLayer>,
    /// The digest of what came out.
    pub(super) diff_id: Digest,
    /// The digest of the member itself; `None`: nobody asked for it.
    blob: Option<Digest>,
    size: u64,
}

/// Everything that an archive holds.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    store: Arc<Store>,
    bounds: &'a Bounds,
    limits: &'a Limits,
    progress: &'a Progress,
    members: HashMap<String, Content>,
    links: Links,
    spool: Stage,
    spooled: u64,
    /// How many members were put by.
    small: usize,
    /// What the documents say, as soon as they are all there, with the layers of it kept from collection.
    early: Option<(Plan, Pins)>,
    pins: Vec<Pins>,
    /// How many members were put by when it was last looked whether the documents are all there.
    looked_at: usize,
}

/// What no image needs, or an image that was refused, is not kept for a next try.
impl Drop for Contents<'_> {
    fn drop(&mut self) {
        for content in self.members.values() {
            if let Content::Layer(unpacked) = content {
                unpacked.staged.unwanted();
            }
        }
    }
}

impl<'a> Contents<'a> {
    /// Reads a whole archive.
    pub(super) fn read(
        store: &Arc<Store>,
        source: impl Read,
        bounds: &'a Bounds,
        limits: &'a Limits,
        progress: &'a Progress,
    ) -> Result<Self, ImageError> {
        let mut contents = Self {
            store: store.clone(),
            bounds,
            limits,
            progress,
            members: HashMap::new(),
            links: Links::default(),
            spool: Stage::new(store.clone())?,
            spooled: 0,
            small: 0,
            early: None,
            pins: Vec::new(),
            looked_at: 0,
        };
        let entries = u64::try_from(bounds.archive_entries).unwrap_or(u64::MAX);
        let outer = Limits { entries, size: u64::MAX, ..limits.clone() };
        let mut archive = Archive::new(source, &outer).map_err(broken)?;
        while let Some(member) = archive.next_member().map_err(broken)? {
            contents.take_in(&mut archive, member)?;
        }
        archive.finish().map_err(broken)?;
        Ok(contents)
    }

    fn take_in<R: Read>(&mut self, archive: &mut Archive<'_, R>, member: Member) -> Result<(), ImageError> {
        let name = member.path.into_os_string().into_string().map_err(|name| {
            ImageError::archive(shown(&name.to_string_lossy()), "has a name that is not UTF-8")
        })?;
        let twice = |name: &str| Err(ImageError::archive(shown(name), "is there twice"));
        match member.kind {
            MemberKind::Other => return Ok(()),
            // What two readers could take for two things is refused.
            _ if self.members.contains_key(&name) || self.links.has(&name) => return twice(&name),
            MemberKind::Link(to) => {
                // What is not UTF-8 names no member.
                if let Ok(to) = to.into_os_string().into_string() {
                    self.links.add(name, to);
                }
                return Ok(());
            }
            MemberKind::File(size) => {
                let content = if size <= u64::try_from(self.bounds.document_bytes).unwrap_or(u64::MAX) {
                    self.put_by(archive, &name, size)?
                } else if size > self.bounds.blob_bytes {
                    let reason =
                        format!("is larger than image_limits.blob_bytes = {}", self.bounds.blob_bytes);
                    return Err(ImageError::archive(shown(&name), reason));
                } else {
                    self.layer(archive, &name, size)?
                };
                self.members.insert(name, content);
            }
        }
        Ok(())
    }

    /// Writes a member that may be a document to the disk.
    fn put_by<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        name: &str,
        size: u64,
    ) -> Result<Content, ImageError> {
        self.spooled = self.spooled.saturating_add(size);
        if self.spooled > self.bounds.archive_spool_bytes {
            let limit = self.bounds.archive_spool_bytes;
            let reason = format!("has more small members than image_limits.archive_spool_bytes = {limit}");
            return Err(ImageError::archive("the archive", reason));
        }
        let mut bytes = Vec::new();
        if archive.body().read_to_end(&mut bytes).is_err() {
            return Err(ended(archive));
        }
        let path = self.spool.files().join(self.small.to_string());
        let write = || File::create_new(&path)?.write_all(&bytes);
        write().map_err(|error| ImageError::store("write", &path, error))?;
        self.small += 1;
        if [INDEX, DOCKER].contains(&name) {
            self.early = None;
        }
        Ok(Content::Small { path, size })
    }

    /// Takes in a member that can only be a layer.
    fn layer<R: Read>(
        &mut self,
        archive: &mut Archive<'_, R>,
        name: &str,
        size: u64,
    ) -> Result<Content, ImageError> {
        let watched = Arc::new(LayerProgress::new(label(name), size));
        self.progress.layer(watched.clone());
        if self.is_needless(name) {
            watched.set(LayerState::Present);
            // To its end, so that an archive that is cut off here is found so.
            return match io::copy(&mut archive.body(), &mut io::sink()) {
                Ok(_) => Ok(Content::PassedOver),
                Err(_) => Err(ended(archive)),
            };
        }
        watched.set(LayerState::Arriving);
        let body = Counted { inner: archive.body(), watched: &watched };
        let unpacked = unpack(&self.store, body, name, size, Compression::Detect, self.limits);
        match unpacked {
            Ok(layer) => {
                watched.set(LayerState::Done);
                Ok(Content::Layer(layer))
            }
            Err(error) if error.is_disk_full() || matches!(error, ImageError::Store { .. }) => Err(error),
            // The member itself ended early, or it is no layer; then it may be of no use to anybody.
            Err(error) => {
                if io::copy(&mut archive.body(), &mut io::sink()).is_err() {
                    return Err(ended(archive));
                }
                match archive.take_broken() {
                    Some(error) => Err(broken(error)),
                    None => Ok(Content::Bad(error)),
                }
            }
        }
    }

    /// Whether nothing of this member is needed: it is in the store, or the documents have no use for it.
    fn is_needless(&mut self, name: &str) -> bool {
        let known = by_blob(&self.store, name).into_iter().chain(by_name(name));
        for diff_id in known {
            self.pins.push(Pins::new(self.store.clone(), std::slice::from_ref(&diff_id)));
            if self.store.index().layers.contains_key(&diff_id) {
                return true;
            }
        }
        if self.early.is_none()
            && std::mem::replace(&mut self.looked_at, self.small) < self.small
            && let Ok(plan) = plan::plan(self, self.bounds)
        {
            let layers = plan.images.iter().flat_map(|image| &image.layers);
            let needed: HashSet<Digest> = layers.map(|layer| layer.diff_id.clone()).collect();
            let pins = Pins::new(self.store.clone(), &needed.into_iter().collect::<Vec<_>>());
            self.early = Some((plan, pins));
        }
        let Some((plan, _)) = &self.early else { return false };
        let named: Vec<_> = plan
            .images
            .iter()
            .flat_map(|image| &image.layers)
            .filter(|layer| self.resolve(&layer.member).as_deref() == Some(name))
            .collect();
        if named.is_empty() {
            // A link to it may still come, but not in a layout.
            return plan.is_layout && name.starts_with(BLOBS);
        }
        let index = self.store.index();
        named.iter().all(|layer| index.layers.contains_key(&layer.diff_id))
    }

    fn member(&self, name: &str) -> Option<(String, &Content)> {
        let name = self.resolve(name)?;
        let content = self.members.get(&name)?;
        Some((name, content))
    }

    /// Tells of a layer that is in the store, and that the sender has left out therefore.
    pub(super) fn left_out(&self, layer: &PlannedLayer) {
        if self.member(&layer.member).is_none() {
            let size = layer.blob.as_ref().map_or(0, |blob| blob.size);
            let watched = Arc::new(LayerProgress::new(label(&layer.member), size));
            watched.set(LayerState::Present);
            self.progress.layer(watched);
        }
    }

    /// The layer that a member is, unpacked now if it was put by. `blob` is what a manifest says of the member.
    pub(super) fn unpacked(
        &mut self,
        name: &str,
        compression: Compression,
        blob: Option<&Descriptor>,
    ) -> Result<Unpacked, ImageError> {
        let part = shown(name);
        let Some((own_name, content)) = self.member(name) else {
            return Err(ImageError::archive(
                part,
                "is not in the archive, and its layer is not in the store",
            ));
        };
        let unpacked = match content {
            Content::Layer(unpacked) => unpacked.clone(),
            Content::Bad(error) => return Err(error.clone()),
            Content::PassedOver => {
                let reason = "was passed over, and its layer is not in the store any more: import again";
                return Err(ImageError::archive(part, reason));
            }
            Content::Small { path, size } => {
                let watched = Arc::new(LayerProgress::new(label(&own_name), *size));
                self.progress.layer(watched.clone());
                watched.set(LayerState::Arriving);
                let file = File::open(path).map_err(|error| ImageError::store("open", path, error))?;
                let body = Counted { inner: file, watched: &watched };
                let unpacked = unpack(&self.store, body, &own_name, *size, compression, self.limits)?;
                watched.set(LayerState::Done);
                self.members.insert(own_name, Content::Layer(unpacked.clone()));
                unpacked
            }
        };
        if let Some(blob) = blob
            && (unpacked.size != blob.size || unpacked.blob.as_ref() != Some(&blob.digest))
        {
            let found = unpacked.blob.as_ref().map_or_else(String::new, Digest::to_string);
            let reason =
                format!("its digest is {found} and its size {}, and {blob} was named", unpacked.size);
            return Err(ImageError::archive(part, reason));
        }
        Ok(unpacked)
    }
}

impl Documents for Contents<'_> {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self.member(name) {
            Some((_, Content::Small { path, .. })) => {
                std::fs::read(path).map(Some).map_err(|error| ImageError::store("read", path, error))
            }
            Some(_) => {
                let limit = self.bounds.document_bytes;
                let reason = format!("is larger than image_limits.document_bytes = {limit}");
                Err(ImageError::archive(shown(name), reason))
            }
            None => Ok(None),
        }
    }

    fn resolve(&self, name: &str) -> Option<String> {
        self.links.resolve(name)
    }
}

/// Unpacks the bytes of a member.
fn unpack(
    store: &Arc<Store>,
    source: impl Read,
    name: &str,
    size: u64,
    compression: Compression,
    limits: &Limits,
) -> Result<Unpacked, ImageError> {
    let stage = Stage::new(store.clone())?;
    let headers = Some(stage.headers()?);
    let failed = |error: LayerError| match error {
        LayerError::Limit { limit, max } => {
            ImageError::archive(shown(name), format!("exceeds the limit {} = {max}", limit_key(limit)))
        }
        error => {
            ImageError::ArchiveLayer { part: shown(name), directory: stage.files(), source: Arc::new(error) }
        }
    };
    let algorithm = name
        .strip_prefix(BLOBS)
        .map(|rest| if rest.starts_with("sha512/") { Algorithm::Sha512 } else { Algorithm::Sha256 });
    let (unpacked, blob) = match algorithm {
        None => (cove_layer::unpack(source, compression, &stage.files(), headers, limits), None),
        Some(algorithm) => {
            let mut source = HashingReader::new(source, algorithm);
            let unpacked = cove_layer::unpack(&mut source, compression, &stage.files(), headers, limits);
            if unpacked.as_ref().is_err_and(|error| errno(error).is_none()) {
                // A member that is not the one it is named for is the better reason.
                let wrong =
                    |digest: &Digest| ImageError::archive(shown(name), format!("its digest is {digest}"));
                if io::copy(&mut source, &mut io::sink()).is_ok() {
                    let (digest, ..) = source.finish();
                    if !name.ends_with(digest.hex()) {
                        return Err(wrong(&digest));
                    }
                }
                return Err(failed(unpacked.expect_err("just seen")));
            }
            let (digest, ..) = source.finish();
            (unpacked, Some(digest))
        }
    };
    let unpacked = unpacked.map_err(failed)?;
    let diff_id = unpacked.diff_id.clone();
    let staged = Arc::new(stage.finish(diff_id.clone(), &record(&unpacked, blob.as_ref()))?);
    Ok(Unpacked { staged, diff_id, blob, size })
}

/// The diff ID that a member's name says: `docker save` names plain layers by their own digest, and so do its relatives.
/// Only a hint: whoever is named so and is not in the store is unpacked and looked at.
fn by_name(name: &str) -> Option<Digest> {
    let stem = name.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".tar"))?;
    format!("sha256:{stem}").parse().ok()
}

/// The layer in the store that was unpacked from the blob of this name.
fn by_blob(store: &Store, name: &str) -> Option<Digest> {
    let digest = named_by(name)?;
    let index = store.index();
    let found = index.layers.iter().find(|(_, layer)| layer.blob.as_ref() == Some(&digest));
    found.map(|(diff_id, _)| diff_id.clone())
}

/// How a member is shown: by its digest, if it is named so.
fn label(name: &str) -> String {
    match name.strip_prefix(BLOBS).and_then(|rest| rest.split_once('/')) {
        Some((algorithm, hex)) => format!("{algorithm}:{hex}"),
        None => name.chars().filter(|letter| !letter.is_control()).take(200).collect(),
    }
}

/// Adds what is read to a progress.
struct Counted<'a, R> {
    inner: R,
    watched: &'a LayerProgress,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.watched.add(count);
        Ok(count)
    }
}

/// The archive itself is at fault.
fn broken(error: LayerError) -> ImageError {
    let reason = match error {
        LayerError::Limit { limit: "entries", max } => {
            format!("has more members than image_limits.archive_entries = {max}")
        }
        LayerError::Limit { limit, max } => format!("exceeds the limit {} = {max}", limit_key(limit)),
        LayerError::Source(_) => "ended early: its sender is gone".to_owned(),
        other => other.to_string(),
    };
    ImageError::archive("the archive", reason)
}

/// Why the content of a member ended.
fn ended<R: Read>(archive: &mut Archive<'_, R>) -> ImageError {
    archive.take_broken().map_or_else(|| ImageError::archive("the archive", "ended early"), broken)
}
