//! Attach: not built yet.

use std::sync::Arc;

use super::remote_command::{Ended, Session};
use super::token::Attach;
use crate::node::Node;

/// Refuses.
pub async fn serve(_node: &Arc<Node>, _attach: Attach, session: Session) {
    session.finish(&Ended::Failed("Attach is not implemented by this version of Cove".to_owned())).await;
}
