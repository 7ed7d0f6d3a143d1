//! Named steps of an operation.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// The step.
    pub name: Cow<'static, str>,
    /// How long it took.
    pub duration: Duration,
}
