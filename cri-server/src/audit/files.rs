//! Files and directories in both roots that no record knows.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Subject;
use super::finding::{Finding, Kind, Repair};
use super::known::{Known, Member};
use super::seen::{Seen, id_of};
use crate::image::OnDiskLayer;

/// For as long as this a daemon may be at work on what it deletes: a tree of many thousands of files.
const AT_WORK: Duration = Duration::from_secs(60);

pub(super) fn find(subject: &Subject<'_>, seen: &Seen, known: &Known, found: &mut BTreeSet<Finding>) {
    for path in &seen.runs {
        match id_of(path) {
            Some(id) if known.stands(id) => {}
            Some(id) => drop(found.insert(delete(Kind::Directory, path).of(id))),
            None => drop(found.insert(delete(Kind::File, path))),
        }
    }
    for (id, path) in &known.unrecorded {
        found.insert(delete(Kind::Directory, path).of(id));
    }
    for (id, member) in &known.members {
        let sandbox = &member.identity.sandbox;
        if !known.pods.contains_key(sandbox) && !known.is_unreadable(sandbox) {
            found.insert(delete(Kind::Directory, &member.places.bundle).of(id));
        }
    }
    found.extend(known.strangers.iter().map(|path| delete(Kind::File, path)));
    // Seen in every look of a second: writing one takes microseconds.
    found.extend(known.temporary.iter().map(|path| delete(Kind::File, path)));
    // A daemon empties its trash, at its start too; what stays could not be deleted.
    let stays = |path: &&std::path::PathBuf| subject.daemon.is_some() && is_older(path, AT_WORK);
    for path in seen.trash.iter().chain(&seen.images.trash).filter(stays) {
        found.insert(delete(Kind::Directory, path));
    }
    unreadable(seen, known, found);
    layers(subject, seen, known, found);
}

fn delete(kind: Kind, path: &Path) -> Finding {
    Finding::orphan(kind, path.display().to_string(), Repair::Delete(path.to_owned()))
}

/// What cannot be read is evidence, and stays.
fn unreadable(seen: &Seen, known: &Known, found: &mut BTreeSet<Finding>) {
    for path in &seen.quarantine {
        let finding = Finding::orphan(Kind::Record, path.display().to_string(), Repair::ByHand);
        found.insert(finding.advise("nobody can use it: look at it, then delete it by hand"));
    }
    for (id, (path, reason)) in &known.unreadable {
        let advice = format!("{reason}; the next start of the daemon sets it aside");
        found.insert(Finding::missing(Kind::Record, path.display().to_string(), id, &advice));
    }
    for (path, reason) in &seen.images.unreadable {
        let advice = format!("{reason}; no layer is deleted until its image is pulled again, or removed");
        let name = path.display().to_string();
        found.insert(Finding::missing(Kind::Record, name, "an image", &advice));
    }
}

/// A whole layer that nobody needs is the store's to delete, at once or after the time that it waits for a pull's next
/// try. What is not whole it leaves for a pull of the same content to replace, which may never come.
fn layers(subject: &Subject<'_>, seen: &Seen, known: &Known, found: &mut BTreeSet<Finding>) {
    let images = &seen.images;
    for (image, needed) in &images.needed {
        for layer in needed {
            let advice = match images.layers.get(layer) {
                None => "the image is not listed: pull it again",
                Some(OnDiskLayer { is_whole: false, .. }) => {
                    "it is damaged, and the image is not listed after the next start: pull it again then"
                }
                Some(_) => continue,
            };
            found.insert(Finding::missing(Kind::Layer, layer, image, advice));
        }
    }
    if !images.unreadable.is_empty() || !known.unreadable.is_empty() {
        return;
    }
    let of_containers = known.members.values().flat_map(|Member { identity, .. }| {
        identity.layers.iter().chain(identity.volume_images.iter().flat_map(|image| &image.layers))
    });
    let needed: BTreeSet<&str> = of_containers
        .filter_map(|files| files.parent()?.file_name()?.to_str())
        .chain(images.needed.values().flatten().map(String::as_str))
        .collect();
    for (layer, OnDiskLayer { path, is_whole }) in &images.layers {
        if *is_whole || needed.contains(layer.as_str()) {
            continue;
        }
        let mut finding = delete(Kind::Layer, path);
        if subject.daemon.is_some() {
            // A pull may put a whole one in its place at any moment.
            finding.repair = Repair::ByHand;
            finding = finding.advise(
                "it is damaged: pull an image that has it, or end the daemon and cove audit --repair",
            );
        }
        found.insert(finding);
    }
}

/// Not renamed or changed for so long. What is gone is not there to be older.
fn is_older(path: &Path, than: Duration) -> bool {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return false };
    let changed = u64::try_from(metadata.ctime()).unwrap_or(0);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.saturating_sub(Duration::from_secs(changed)) > than
}
