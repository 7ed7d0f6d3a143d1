//! Records of images that cannot be read: others are as they were, what runs from them runs on, and the next pull makes them
//! whole.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cove_e2e::image::{self, Blob, Layer};
use cove_e2e::kubelet::Kubelet;
use cove_e2e::random::Random;
use cove_e2e::{Outcome, pod, residue, wait};
use k8s_cri::v1::{ImageSpec, ListImagesRequest, PodSandboxConfig, RemoveImageRequest};
use serde_json::json;

use crate::Ground;
use crate::records::{DAMAGES, Damage};

/// How long layers that nobody needs may stay.
const SOON: Duration = Duration::from_secs(15);

/// An image with a layer of its own, and a container that runs from it.
struct Victim {
    reference: String,
    id: String,
    record: PathBuf,
    container: String,
    text: String,
}

async fn ids(kubelet: &Kubelet) -> Outcome<Vec<String>> {
    let mut cri = kubelet.0.clone();
    let images = cri.images.list_images(ListImagesRequest::default()).await?.into_inner().images;
    Ok(images.into_iter().map(|image| image.id).collect())
}

impl Victim {
    async fn make(
        ground: &Ground,
        kubelet: &mut Kubelet,
        (sandbox, config): (&str, &PodSandboxConfig),
        of_layer: bool,
        damage: Damage,
    ) -> Outcome<Self> {
        let text = format!("{}-{damage:?}", if of_layer { "layer" } else { "image" }).to_lowercase();
        // Two files: one that was looked at before, and one that was not, which no cache has.
        let layer = Layer::new().file("seen", 0o644, &text).file("unseen", 0o644, &text);
        let diff_id =
            Blob::new(Layer::new().file("seen", 0o644, &text).file("unseen", 0o644, &text).tar()).digest;
        let image = image::build(vec![image::busybox()?, layer], json!({"Env": ["PATH=/bin"]}))?;
        let reference = ground.registry.push(&format!("faults/{text}"), "1", &image)?;
        let id = kubelet.pull(&reference).await?;
        let images = ground.place.root.join("images");
        let hex = |digest: &str| digest.replacen("sha256:", "", 1);
        let record = if of_layer {
            images.join("layers").join(hex(&diff_id)).join("layer.json")
        } else {
            images.join("records").join(format!("{}.json", hex(&id)))
        };
        let container = pod::container(&text, &reference, &["sh", "-c", "cat /seen; exec sleep 1000"]);
        let container = kubelet.create(sandbox, config, &container).await?;
        kubelet.start(&container).await?;
        Ok(Self { reference, id, record, container, text })
    }

    async fn runs(&self, kubelet: &mut Kubelet, file: &str) -> Outcome {
        match kubelet.exec(&self.container, &["cat", file]).await? {
            (0, text) if text == self.text.as_bytes() => Ok(()),
            other => Err(format!("{}: {file} in a running container: {other:?}", self.text).into()),
        }
    }
}

pub async fn damaged(ground: &Ground) -> Outcome {
    let (daemon, mut kubelet) = ground.start("").await?;
    let layers = ground.place.root.join("images/layers");
    let before = fs::read_dir(&layers)?.count();
    let config = ground.pod("images");
    let sandbox = kubelet.run(&config).await?;
    let mut victims = Vec::new();
    for of_layer in [false, true] {
        for damage in DAMAGES {
            let pod = (sandbox.as_str(), &config);
            victims.push((damage, Victim::make(ground, &mut kubelet, pod, of_layer, damage).await?));
        }
    }
    daemon.kill()?;
    let mut random = Random::new(ground.seed);
    for (damage, victim) in &victims {
        damage.apply(&victim.record, &mut random)?;
    }
    let (daemon, mut kubelet) = ground.start("").await?;
    let listed = ids(&kubelet).await?;
    if listed.len() != 1 || victims.iter().any(|(_, victim)| listed.contains(&victim.id)) {
        return Err(format!("listed are {listed:?}, and only one image is whole").into());
    }
    for (_, victim) in &victims {
        victim.runs(&mut kubelet, "/seen").await?;
        if kubelet.pull(&victim.reference).await? != victim.id {
            return Err(format!("{} was pulled again, and is another", victim.text).into());
        }
        let container = pod::container("again", &victim.reference, &["cat", "/unseen"]);
        let container = kubelet.create(&sandbox, &config, &container).await?;
        kubelet.start(&container).await?;
        kubelet.remove(&container).await?;
    }
    if ids(&kubelet).await?.len() != victims.len() + 1 {
        return Err("what was pulled again is not listed".into());
    }
    // The trash is empty by now: what was thrown away is gone.
    let trash = ground.place.root.join("images/trash");
    wait::until("the trash to be emptied", SOON, || Ok((fs::read_dir(&trash)?.count() == 0).then_some(())))?;
    for (_, victim) in &victims {
        victim.runs(&mut kubelet, "/unseen").await?;
    }
    kubelet.stop_pod(&sandbox).await?;
    kubelet.remove_pod(&sandbox).await?;
    for (_, victim) in &victims {
        let image = Some(ImageSpec { image: victim.reference.clone(), ..Default::default() });
        kubelet.0.images.remove_image(RemoveImageRequest { image }).await?;
    }
    wait::until("the layers to be collected", SOON, || {
        Ok((fs::read_dir(&layers)?.count() == before).then_some(()))
    })?;
    residue::check(&ground.place, Some(daemon.pid()))?;
    daemon.stop()?;
    residue::check(&ground.place, None)
}
