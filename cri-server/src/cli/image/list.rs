//! Lists of images and of pulls.

use std::error::Error;
use std::time::Duration;

use super::super::connect::Connected;
use super::super::table::table;
use super::bars::{bytes, rate, short, state};
use super::told;
use crate::api::own::{Image, ListRequest, Progress, PullsRequest};

/// How long rates are measured.
const MEASURED: Duration = Duration::from_millis(500);

/// A line for each name of each image.
pub(super) async fn images(connected: &mut Connected) -> Result<String, Box<dyn Error>> {
    let answer = connected.images.list(ListRequest {}).await.map_err(told)?.into_inner();
    let mut rows: Vec<_> = answer.images.iter().flat_map(rows).collect();
    rows.sort();
    Ok(table(["IMAGE", "ID", "SIZE", "PINNED"], rows))
}

fn rows(image: &Image) -> Vec<[String; 4]> {
    let names = if image.tags.is_empty() { image.digests.clone() } else { image.tags.clone() };
    let names = if names.is_empty() { vec![String::new()] } else { names };
    let pinned = if image.pinned { "yes" } else { "" };
    let row = |name| [name, short(&image.id), bytes(image.size), pinned.to_owned()];
    names.into_iter().map(row).collect()
}

/// A line for each layer of each pull. Rates are those of half a second.
pub(super) async fn pulls(connected: &mut Connected) -> Result<String, Box<dyn Error>> {
    let before = connected.images.pulls(PullsRequest {}).await.map_err(told)?.into_inner().pulls;
    if !before.is_empty() {
        tokio::time::sleep(MEASURED).await;
    }
    let now = connected.images.pulls(PullsRequest {}).await.map_err(told)?.into_inner().pulls;
    let rows = now.iter().flat_map(|pull| {
        let earlier = before.iter().find(|earlier| earlier.subject == pull.subject);
        pull_rows(pull, earlier)
    });
    Ok(table(["IMAGE", "SINCE", "LAYER", "STATE", "BYTES", "OF", "RATE"], rows.collect()))
}

fn pull_rows(pull: &Progress, earlier: Option<&Progress>) -> Vec<[String; 7]> {
    let since = format!("{}s", pull.milliseconds / 1000);
    if pull.layers.is_empty() {
        let empty = String::new;
        return vec![[pull.subject.clone(), since, empty(), "asking".to_owned(), empty(), empty(), empty()]];
    }
    let row = |layer: &crate::api::own::Layer| {
        let rate = rate(layer, pull.milliseconds, earlier).map(|rate| format!("{}/s", bytes(rate)));
        [
            pull.subject.clone(),
            since.clone(),
            short(&layer.name),
            state(layer).to_owned(),
            bytes(layer.bytes),
            bytes(layer.size),
            rate.unwrap_or_default(),
        ]
    };
    pull.layers.iter().map(row).collect()
}
