//! Containers: from Create to Remove.

pub(crate) mod config;
pub(crate) mod create;
pub(crate) mod end;
pub(crate) mod exec;
pub(crate) mod exec_sync;
pub(crate) mod image_volume;
pub(crate) mod list;
pub(crate) mod live;
mod log;
pub(crate) mod record;
pub(crate) mod remove;
pub(crate) mod reopen_log;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod stream;
mod target;
pub(crate) mod update;
mod view;
mod zombie;

pub(crate) use state::{ContainerFact, ContainerPhase, ResolvedUser};
pub(crate) use view::ContainerView;
