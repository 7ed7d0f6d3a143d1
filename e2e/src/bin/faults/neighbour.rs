//! A pod that has nothing to do with what is stuck, and how long its calls take.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cove_e2e::kubelet::Kubelet;
use cove_e2e::{Outcome, pod};
use k8s_cri::v1::{ListContainerStatsRequest, PodSandboxConfig, StatusRequest, VersionRequest};

use crate::Ground;

/// How often each call is made, in a short run and else: the middle one counts.
const ROUNDS: (usize, usize) = (5, 21);
/// What a busy machine may add to a call, besides the factor.
const SLACK: Duration = Duration::from_millis(50);
/// No call of another pod may take longer than this many times what it took before.
const FACTOR: u32 = 2;

/// The pod.
#[derive(Debug)]
pub struct Neighbour<'a> {
    ground: &'a Ground,
    kubelet: Kubelet,
    config: PodSandboxConfig,
    sandbox: String,
    container: String,
    before: BTreeMap<&'static str, Duration>,
}

/// A call, and how long it took.
macro_rules! timed {
    ($times:ident, $name:literal, $call:expr) => {{
        let began = Instant::now();
        let answer = $call.await.map_err(|status| format!("{} of another pod: {status:?}", $name))?;
        $times.entry($name).or_insert_with(Vec::new).push(began.elapsed());
        answer
    }};
}

impl<'a> Neighbour<'a> {
    /// Starts it, and measures how long its calls take.
    pub async fn start(ground: &'a Ground, kubelet: &Kubelet) -> Outcome<Self> {
        let mut kubelet = kubelet.clone();
        let config = ground.pod("neighbour");
        let sandbox = kubelet.run(&config).await?;
        let container = pod::container("stays", &ground.image, &["sleep", "1000"]);
        let container = kubelet.create(&sandbox, &config, &container).await?;
        kubelet.start(&container).await?;
        let mut this = Self { ground, kubelet, config, sandbox, container, before: BTreeMap::new() };
        // The first round warms up what the daemon reads once.
        this.measure(1).await?;
        this.before = this.measure(this.rounds()).await?;
        Ok(this)
    }

    /// Its calls take no more than twice the time.
    pub async fn notices_nothing(&mut self) -> Outcome {
        for (call, now) in self.measure(self.rounds()).await? {
            let before = self.before.get(call).copied().unwrap_or_default();
            if now > before * FACTOR + SLACK {
                return Err(format!("{call} of another pod takes {now:?}, and took {before:?} before").into());
            }
        }
        Ok(())
    }

    fn rounds(&self) -> usize {
        if self.ground.short { ROUNDS.0 } else { ROUNDS.1 }
    }

    async fn measure(&mut self, rounds: usize) -> Outcome<BTreeMap<&'static str, Duration>> {
        let mut times: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
        let short_lived = self.ground.pod("short-lived");
        for _ in 0..rounds {
            let kubelet = &mut self.kubelet;
            timed!(times, "Version", kubelet.0.runtime.version(VersionRequest::default()));
            timed!(times, "Status", kubelet.0.runtime.status(StatusRequest::default()));
            timed!(times, "ListPodSandbox", kubelet.pods());
            timed!(times, "ListContainers", kubelet.containers());
            timed!(
                times,
                "ListContainerStats",
                kubelet.0.runtime.list_container_stats(ListContainerStatsRequest::default())
            );
            timed!(times, "ContainerStatus", kubelet.status(&self.container));
            let (code, _) = timed!(times, "ExecSync", kubelet.exec(&self.container, &["true"]));
            if code != 0 {
                return Err(format!("exec in another pod ends with {code}").into());
            }
            let config = pod::container("comes", &self.ground.image, &["sleep", "1000"]);
            let id = timed!(times, "CreateContainer", kubelet.create(&self.sandbox, &self.config, &config));
            timed!(times, "StartContainer", kubelet.start(&id));
            timed!(times, "StopContainer", kubelet.stop(&id, 0));
            timed!(times, "RemoveContainer", kubelet.remove(&id));
            let id = timed!(times, "RunPodSandbox", kubelet.run(&short_lived));
            timed!(times, "StopPodSandbox", kubelet.stop_pod(&id));
            timed!(times, "RemovePodSandbox", kubelet.remove_pod(&id));
        }
        let middle = |mut times: Vec<Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        Ok(times.into_iter().map(|(call, times)| (call, middle(times))).collect())
    }
}
