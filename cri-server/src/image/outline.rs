//! What an archive holds, as its sender sees it, who can read the documents before anything is sent: which members need not
//! travel. A hint only: whoever takes the archive in reads the documents again, and verifies all of it.

use std::collections::HashSet;

use cove_layer::Digest;

use super::ImageError;
use super::bounds::Bounds;
use super::plan::{self, BLOBS, Documents};

/// The layers that the documents of an archive name. The default is that of an archive of which nothing is known: all of it
/// is needed.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    layers: Vec<Named>,
    is_layout: bool,
    document_bytes: u64,
}

#[derive(Debug)]
struct Named {
    member: String,
    diff_id: Digest,
    is_there: bool,
}

impl Outline {
    /// Reads the documents.
    pub(crate) fn of(documents: &impl Documents, bounds: &Bounds) -> Result<Self, ImageError> {
        let plan = plan::plan(documents, bounds)?;
        let layers = plan.images.into_iter().flat_map(|image| image.layers);
        let named = layers.filter_map(|layer| {
            let member = documents.resolve(&layer.member)?;
            Some(Named { member, diff_id: layer.diff_id, is_there: false })
        });
        let document_bytes = u64::try_from(bounds.document_bytes).unwrap_or(u64::MAX);
        Ok(Self { layers: named.collect(), is_layout: plan.is_layout, document_bytes })
    }

    /// Every layer, once.
    pub(crate) fn diff_ids(&self) -> Vec<Digest> {
        let all: HashSet<&Digest> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        all.into_iter().cloned().collect()
    }

    /// The other side has these.
    pub(crate) fn present(&mut self, there: &HashSet<Digest>) {
        for layer in &mut self.layers {
            layer.is_there = there.contains(&layer.diff_id);
        }
    }

    /// The members that are layers which the other side has not, each once.
    #[cfg(feature = "containerd")]
    pub(crate) fn needed(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        let needed = self.layers.iter().filter(|layer| !layer.is_there && seen.insert(&layer.member));
        needed.map(|layer| layer.member.clone()).collect()
    }

    /// Whether a member of so many bytes need not be sent: the other side has the layer that it is, or it can be no document
    /// and no image for this machine names it.
    pub(crate) fn is_needless(&self, member: &str, size: u64) -> bool {
        let mut named = self.layers.iter().filter(|layer| layer.member == member).peekable();
        if named.peek().is_none() {
            return self.is_layout && size > self.document_bytes && member.starts_with(BLOBS);
        }
        named.all(|layer| layer.is_there)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::super::manifest::host_architecture;
    use super::*;

    struct Files(HashMap<&'static str, Vec<u8>>);

    impl Documents for Files {
        fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
            Ok(self.0.get(name).cloned())
        }

        fn resolve(&self, name: &str) -> Option<String> {
            Some(if name == "link" { "linked.tar".into() } else { name.into() })
        }
    }

    #[test]
    fn what_is_there_need_not_be_sent() {
        let [first, second] = ["a", "b"].map(|digit| format!("sha256:{}", digit.repeat(64)));
        let config = json!({
            "architecture": host_architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [first, second, first]},
        });
        let list = json!([{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["1.tar", "link", "1.tar"]}]);
        let files = Files(HashMap::from([
            ("c.json", serde_json::to_vec(&config).unwrap()),
            ("manifest.json", serde_json::to_vec(&list).unwrap()),
        ]));
        let mut outline = Outline::of(&files, &Bounds::default()).unwrap();
        assert_eq!(outline.diff_ids().len(), 2);
        assert!(["1.tar", "linked.tar", "x"].iter().all(|name| !outline.is_needless(name, 1 << 30)));
        outline.present(&HashSet::from([second.parse().unwrap()]));
        assert!(outline.is_needless("linked.tar", 1) && !outline.is_needless("1.tar", 1));
        assert!(
            !outline.is_needless("c.json", 1) && !Outline::default().is_needless("blobs/sha256/x", 1 << 30)
        );
    }
}
