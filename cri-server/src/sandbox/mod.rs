//! Sandboxes: a pod's environment, from Run to Remove.

pub(crate) mod config;
pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod stop;
mod view;

pub(crate) use view::SandboxView;
