//! UpdateContainerResources: new limits, written down before they are set, and taken back when the kernel refuses one.
//! It waits for no Start and no Stop; it has a lock of its own, which Start takes while it sets limits.

use std::sync::Arc;

use super::config::Resources;
use super::live::Container;
use super::spec;
use super::state::Stage;
use crate::detach::{self, ANSWER_LIMIT};
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::step::{Operation, Progress};

/// The operation, for people and fail points.
const UPDATE: Operation = Operation {
    name: "UpdateContainerResources",
    point: "container.update",
    kind: Kind::Container,
    steps: &[],
};

/// Changes the limits of a container; what is 0 or empty in `asked` stays as it is. Gone or ended: success, since there
/// is nothing left to limit.
pub async fn update(node: &Arc<Node>, id: &str, asked: Resources) -> Result<(), Error> {
    let container = match node.containers.find(id, |container| container.view().is_some()) {
        Ok(container) => container,
        Err(Error::NotFound { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let progress = node.operations.begin(UPDATE, container.id());
    let work = work(Arc::clone(node), container, asked, Arc::clone(&progress));
    detach::run(&node.tasks, ANSWER_LIMIT, progress, work).await
}

async fn work(
    node: Arc<Node>,
    container: Arc<Container>,
    asked: Resources,
    progress: Arc<Progress>,
) -> Result<(), Error> {
    progress.enter("lock");
    let _lock = container.update.lock().await;
    let before = container.resources();
    let mut after = before.clone();
    after.take(asked);
    if after == before || matches!(container.state().stage, Stage::Exited { .. }) {
        return Ok(());
    }
    let limits = spec::limits(&after, node.cgroups.unified())?;
    progress.enter("record");
    write(&container, Some(after)).await?;
    progress.enter("limits");
    // No cgroup: it is not started, and Start sets what is written down.
    match node.cgroups.change_limits(&container.identity.cgroup, limits).await {
        Ok(_) => Ok(()),
        Err(error) => match write(&container, Some(before)).await {
            Ok(()) => Err(error),
            Err(failure) => Err(error.then(failure)),
        },
    }
}

async fn write(container: &Arc<Container>, resources: Option<Resources>) -> Result<(), Error> {
    container
        .change(move |state| {
            state.resources = resources;
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let mut now = Resources {
            cpu_shares: 512,
            memory_limit: 64,
            cpuset_cpus: "0".into(),
            oom_score_adj: 3,
            ..Resources::default()
        };
        now.hugepages.insert("2MB".into(), 1);
        let mut asked = Resources {
            memory_limit: 128,
            oom_score_adj: 9,
            cpu_period: 50_000,
            cpu_quota: 25_000,
            cpuset_mems: "0".into(),
            ..Resources::default()
        };
        asked.hugepages.insert("1GB".into(), 0);
        let mut after = now.clone();
        after.take(asked);
        assert_eq!((after.cpu_shares, after.memory_limit, after.cpuset_cpus.as_str()), (512, 128, "0"));
        assert_eq!((after.cpu_period, after.cpu_quota, after.cpuset_mems.as_str()), (50_000, 25_000, "0"));
        assert_eq!(after.oom_score_adj, 3, "a process that runs keeps its score");
        assert_eq!(after.hugepages.len(), 2);
        let mut same = now.clone();
        same.take(Resources::default());
        assert_eq!(same, now);
        // Memory without swap keeps meaning no swap: a swap limit that was given may stand in the way of less memory.
        let mut both = Resources { memory_limit: 64, memory_swap_limit: 96, ..Resources::default() };
        both.take(Resources { memory_swap_limit: -1, ..Resources::default() });
        assert_eq!((both.memory_limit, both.memory_swap_limit), (64, -1));
    }
}
