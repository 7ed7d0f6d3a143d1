//! Sandboxes: a pod's environment, from Run to Remove.

pub(crate) mod applier;
pub(crate) mod children;
pub(crate) mod config;
pub(crate) mod files;
mod ledger;
pub(crate) mod list;
pub(crate) mod live;
pub(crate) mod port_forward;
pub(crate) mod record;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod teardown;
pub(crate) mod update;
mod view;

pub(crate) use view::SandboxView;
