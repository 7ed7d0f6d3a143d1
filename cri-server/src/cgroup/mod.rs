//! Control groups as the daemon uses them: who makes them, and where the processes of Cove belong.

mod driver;

pub(crate) use driver::{Cgroups, Placement, Settings};
