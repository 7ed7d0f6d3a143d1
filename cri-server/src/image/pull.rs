//! The sequence of a pull: resolve → layers, some at a time → commit. Runs while somebody waits for it; cut off, it leaves
//! nothing half-done and keeps whole layers.

use std::collections::HashSet;
use std::sync::Arc;

use cove_layer::Digest;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::check::Recorded;
use super::commit::Whole;
use super::lease::Pins;
use super::manifest::Layer;
use super::progress::{LayerProgress, Progress};
use super::reference::Reference;
use super::registry::Registry;
use super::resolve::{self, Resolved};
use super::stage::StagedLayer;
use crate::blocking;

use super::{Image, ImageError, Shared, commit, fix_up, layer};

/// What makes the fetch of a layer the same for two pulls: the registry, the blob and the diff ID. By the diff ID alone a
/// pull would wait for whatever registry some other image names for it.
pub(super) type LayerKey = (String, Digest, Digest);

/// A layer of the image.
struct Wanted {
    key: LayerKey,
    layer: Layer,
    progress: Arc<LayerProgress>,
}

/// Pulls one reference with one set of credentials.
pub(super) async fn pull(
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    progress: Arc<Progress>,
) -> Result<Arc<Image>, ImageError> {
    let reference = registry.reference().clone();
    if let Some(image) = unchanged(&shared, &registry, &reference).await? {
        return Ok(image);
    }
    let resolved = resolve::resolve(&registry).await?;
    // Pinned before the first look at what is there: nothing of it is collected until the image's own record counts.
    let mut needed = resolved.config.diff_ids.clone();
    needed.push(fix_up::key(&resolved.id));
    let _pins = Pins::new(shared.store.clone(), &needed);
    let staged = fetch_layers(&shared, &registry, &resolved, &progress).await?;
    tracing::debug!(image = %resolved.id, %reference, layers = staged.len(), "all layers are here");
    finish(&shared, reference, resolved, staged).await
}

/// The image that has this very reference already, if the registry says that nothing changed. Its own credentials are asked
/// for, present or not.
async fn unchanged(
    shared: &Shared,
    registry: &Registry,
    reference: &Reference,
) -> Result<Option<Arc<Image>>, ImageError> {
    let catalog = shared.store.catalog();
    let Some(image) = catalog.find(&reference.to_string())? else { return Ok(None) };
    let digest = match registry.head().await {
        Ok(Some(digest)) => digest,
        // A refusal of a head has no text, and some registries know no heads: the full request says it better.
        Ok(None) | Err(ImageError::Registry { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_same = image.repo_digests.contains(&reference.repo_digest(&digest));
    // It may have been removed while the registry was asked.
    let is_there = shared.store.catalog().find(&reference.to_string())?.is_some_and(|now| now.id == image.id);
    Ok((is_same && is_there).then(|| image.clone()))
}

/// Fetches the layers that are not there. Pulls that need the same layer fetch it once.
async fn fetch_layers(
    shared: &Arc<Shared>,
    registry: &Arc<Registry>,
    resolved: &Resolved,
    progress: &Progress,
) -> Result<Vec<Arc<Option<StagedLayer>>>, ImageError> {
    let mut seen = HashSet::new();
    let wanted = resolved.config.diff_ids.iter().cloned().zip(resolved.manifest.layers.iter().cloned());
    let wanted = wanted.filter(|(diff_id, _)| seen.insert(diff_id.clone()));
    let watched = |(diff_id, layer): (Digest, Layer)| {
        let key = (registry.reference().domain().to_owned(), layer.blob.digest.clone(), diff_id.clone());
        let new = || LayerProgress::new(layer.blob.digest.to_string(), layer.blob.size);
        let watched = shared.fetching.join(key.clone(), new);
        progress.layer(watched.clone());
        Wanted { key, layer, progress: watched }
    };
    let wanted: Vec<Wanted> = wanted.map(watched).collect();
    let mut whole = Vec::new();
    let mut fetches = futures_util::stream::iter(wanted)
        .map(|wanted| join_layer(shared, registry, wanted))
        .buffer_unordered(shared.parallel_layers);
    loop {
        match fetches.try_next().await {
            Ok(Some(layer)) => whole.push(layer),
            Ok(None) => return Ok(whole),
            Err(error) => {
                if error.is_disk_full() {
                    whole.iter().filter_map(|layer| Option::as_ref(layer)).for_each(StagedLayer::unwanted);
                }
                return Err(error);
            }
        }
    }
}

async fn join_layer(
    shared: &Arc<Shared>,
    registry: &Arc<Registry>,
    Wanted { key, layer, progress }: Wanted,
) -> Result<Arc<Option<StagedLayer>>, ImageError> {
    let work = || {
        let (store, registry, limits) = (shared.store.clone(), registry.clone(), shared.limits.clone());
        let wanted = layer::Wanted { layer: layer.clone(), diff_id: key.2.clone(), is_damaged: false };
        let progress = progress.clone();
        async move { layer::fetch(store, registry, wanted, limits, progress).await.map(Arc::new) }.boxed()
    };
    let mut is_own = false;
    let start = || {
        is_own = true;
        work()
    };
    match shared.layers.join(key.clone(), start).await {
        // It was another pull's, whose repository or credentials may be why.
        Err(_) if !is_own => shared.layers.join(key.clone(), work).await,
        fetched => fetched,
    }
}

/// Pulls an image again that is damaged on disk: its documents, and those of its layers that are. What was there stays until
/// what replaces it is whole.
pub(super) async fn again(
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    image: Recorded,
    damaged: HashSet<Digest>,
    progress: Arc<Progress>,
) -> Result<Arc<Image>, ImageError> {
    let resolved = resolve::resolve(&registry).await?;
    if resolved.id != image.id {
        let reason = format!("{} is {} now: pull or import it by hand", registry.reference(), resolved.id);
        return Err(ImageError::Damaged { image: image.id.to_string(), reason });
    }
    let fix_up = fix_up::key(&resolved.id);
    let mut needed = resolved.config.diff_ids.clone();
    needed.push(fix_up.clone());
    let _pins = Pins::new(shared.store.clone(), &needed);
    let mut seen = HashSet::new();
    let mut staged = Vec::new();
    for (diff_id, layer) in resolved.config.diff_ids.iter().zip(&resolved.manifest.layers) {
        if !seen.insert(diff_id) {
            continue;
        }
        let is_damaged = damaged.contains(diff_id);
        let watched = Arc::new(LayerProgress::new(layer.blob.digest.to_string(), layer.blob.size));
        progress.layer(watched.clone());
        let (store, limits) = (shared.store.clone(), shared.limits.clone());
        let wanted = layer::Wanted { layer: layer.clone(), diff_id: diff_id.clone(), is_damaged };
        let fetched = layer::fetch(store, registry.clone(), wanted, limits, watched).await?;
        if let (true, Some(layer)) = (is_damaged, &fetched) {
            layer.replacing();
        }
        staged.push(Arc::new(fetched));
    }
    let others = shared.store.catalog();
    let is_own =
        |tag: &&String| others.find(tag).ok().flatten().is_none_or(|other| other.id == image.record.id);
    let whole = Whole {
        repo_tags: image.record.repo_tags.iter().filter(is_own).cloned().collect(),
        repo_digests: image.record.repo_digests.clone(),
        id: resolved.id,
        config: resolved.config,
        documents: resolved.documents,
        pinned: image.record.pinned,
    };
    let store = shared.store.clone();
    blocking::run(move || {
        let fetched: Vec<&StagedLayer> = staged.iter().filter_map(|layer| Option::as_ref(layer)).collect();
        if damaged.contains(&fix_up) {
            // It is made of the others, and is made again with the commit.
            store.index().layers.remove(&fix_up);
        }
        let committed = commit::commit(&store, &whole, &fetched);
        if committed.is_err() {
            fetched.iter().for_each(|layer| layer.unwanted());
        }
        committed
    })
    .await
}

async fn finish(
    shared: &Arc<Shared>,
    reference: Reference,
    resolved: Resolved,
    staged: Vec<Arc<Option<StagedLayer>>>,
) -> Result<Arc<Image>, ImageError> {
    let store = shared.store.clone();
    let whole = Whole {
        repo_tags: reference.repo_tag().into_iter().collect(),
        repo_digests: vec![reference.repo_digest(&resolved.asked)],
        id: resolved.id,
        config: resolved.config,
        documents: resolved.documents,
        pinned: false,
    };
    blocking::run(move || {
        let fetched: Vec<&StagedLayer> = staged.iter().filter_map(|layer| Option::as_ref(layer)).collect();
        let committed = commit::commit(&store, &whole, &fetched);
        if committed.as_ref().is_err_and(ImageError::is_disk_full) {
            fetched.iter().for_each(|layer| layer.unwanted());
        }
        committed
    })
    .await
}
