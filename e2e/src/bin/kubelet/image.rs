//! Images: pulled when a pod needs them, and collected when the disk is full.

use cove_e2e::Outcome;
use k8s_cri::v1::{ImageFilter, ImageSpec, ListImagesRequest};
use serde_json::{Value, json};

use crate::ground::{Ground, IDLE, Trial, of};

cases!(pulls_what_is_missing, asks_again_where_it_is_told);

/// The image is there.
pub(crate) fn has(ground: &Ground, reference: &str) -> Outcome<bool> {
    let image = Some(ImageSpec { image: reference.to_owned(), ..Default::default() });
    let request = ListImagesRequest { filter: Some(ImageFilter { image }) };
    ground.cri(async |mut cri| Ok(!cri.0.images.list_images(request).await?.into_inner().images.is_empty()))
}

fn pulls_what_is_missing(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("pulled", IDLE, json!({"image": ground.images.user}), json!({}))?;
    Trial::new(vec![pod], |ground| {
        let pod = ground.ready("pulled")?;
        ensure!(has(ground, &ground.images.user)?, "it runs, and its image is not listed");
        let main = of(&pod, "main");
        ensure_eq!(main["image"], Value::from(ground.images.user.as_str()));
        ensure!(main["imageID"].as_str().is_some_and(|id| id.contains("sha256:")), "{main}");
        Ok(())
    })
}

fn asks_again_where_it_is_told(ground: &Ground) -> Outcome<Trial> {
    let pod = ground.simple("asks-again", IDLE, json!({"imagePullPolicy": "Always"}), json!({}))?;
    Trial::new(vec![pod], |ground| ground.ready("asks-again").map(drop))
}
