//! CNI: the network configuration that counts, whether pods can be attached, and runs of its plugins.
//!
//! Plugins run on threads of their own, not on the blocking pool: they may take minutes, and must not keep others' disk
//! work waiting. Nothing is held meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use cove_netplugin::{Attachment, Chain, Conflist, Directories, Limit, Plugins, Sight};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::pod;
use crate::blocking;
use crate::config;
use crate::error::Error;
use crate::sandbox::record::SandboxIdentity;
use crate::stats::DEFAULT_LINK;

/// How long a look at the directories may take before an answer is given from what was known: they are on a local disk.
const LOOK: Duration = Duration::from_secs(2);
/// How long taking a pod down may take its plugins: far more than it does, and inside a kubelet's patience of 2 minutes.
const DEL: Duration = Duration::from_secs(60);
/// How long the plugins may take to say whether they are ready, or to release what is nobody's.
const ASK: Duration = Duration::from_secs(20);
/// How often plugins that are ready are asked again, while somebody wants to know.
const CALM: Duration = Duration::from_secs(60);
/// The same for those that are not.
const UNEASY: Duration = Duration::from_secs(5);
/// For how long plugins that were ready may say that they are not, before the node says so, too: a plugin's own restart
/// must not make a node's pods be scheduled away.
const GRACE: Duration = Duration::from_secs(15);

/// The CNI network of a node.
#[derive(Debug)]
pub struct Cni {
    directories: Mutex<Directories>,
    known: ArcSwap<Known>,
    health: Mutex<Health>,
    /// No pod is attached before this is true: what is nobody's is being released.
    collected: watch::Sender<bool>,
}

/// What the last look found.
#[derive(Debug, Default)]
struct Known {
    sight: Sight,
    /// Why no pod can be attached.
    fault: Option<String>,
}

/// What the plugins say of themselves (STATUS).
#[derive(Debug, Default)]
struct Health {
    list: Option<Arc<Conflist>>,
    asking: bool,
    asked: Option<Instant>,
    was_ready: bool,
    failing: Option<(Instant, String)>,
}

impl Cni {
    /// Looks for the first time. Blocking.
    pub fn start(settings: &config::Network) -> Self {
        let cni = Self {
            directories: Mutex::new(Directories::new(settings.conf_dirs.clone())),
            known: ArcSwap::default(),
            health: Mutex::default(),
            collected: watch::Sender::new(true),
        };
        cni.look_now(settings);
        cni
    }

    /// Looks again, for a bounded time; then asks the plugins how they are, without waiting for them.
    pub async fn look(self: &Arc<Self>, settings: &config::Network) {
        let (cni, own) = (Arc::clone(self), settings.clone());
        if tokio::time::timeout(LOOK, blocking::run(move || cni.look_now(&own))).await.is_err() {
            tracing::warn!(directories = ?settings.conf_dirs, "looking for CNI configurations takes long");
        }
        self.ask(settings);
    }

    fn look_now(&self, settings: &config::Network) {
        let sight = self.directories.lock().unwrap_or_else(PoisonError::into_inner).look();
        let fault = fault(&sight, settings);
        let before = self.known.load();
        let name = |sight: &Sight| sight.chosen.as_ref().map(|list| (list.file.clone(), list.name.clone()));
        if name(&before.sight) != name(&sight) {
            tracing::info!(chosen = ?name(&sight), "CNI configuration");
        }
        if before.fault != fault
            && let Some(fault) = &fault
        {
            tracing::warn!(fault, "the pod network is not ready");
        }
        self.known.store(Arc::new(Known { sight, fault }));
    }

    /// Why no pod can be attached, from what is known.
    pub fn fault(&self) -> Option<String> {
        let known = self.known.load();
        known.fault.clone().or_else(|| {
            let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            let (since, fault) = health.failing.as_ref()?;
            let file = &known.sight.chosen.as_ref()?.file;
            (!health.was_ready || since.elapsed() >= GRACE).then(|| format!("{}: {fault}", file.display()))
        })
    }

    /// Asks the plugins whether they are ready, if that is due, in the background.
    fn ask(self: &Arc<Self>, settings: &config::Network) {
        let Some(list) = self.known.load().sight.chosen.clone() else { return };
        if !list.version.has_status_and_gc() {
            *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::default();
            return;
        }
        {
            let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
            if health.list.as_ref() != Some(&list) && !health.asking {
                *health = Health { list: Some(Arc::clone(&list)), ..Health::default() };
            }
            let pause = if health.failing.is_some() { UNEASY } else { CALM };
            if health.asking || health.asked.is_some_and(|asked| asked.elapsed() < pause) {
                return;
            }
            (health.asking, health.asked) = (true, Some(Instant::now()));
        }
        let (cni, chain) = (Arc::clone(self), chain(settings));
        tokio::spawn(async move {
            let answer = apart(move || chain.status(&list, &limit(ASK)?).map_err(Error::from)).await;
            let mut health = cni.health.lock().unwrap_or_else(PoisonError::into_inner);
            health.asking = false;
            match answer {
                Ok(()) => (health.was_ready, health.failing) = (true, None),
                Err(error) => {
                    let since = health.failing.take().map_or_else(Instant::now, |(since, _)| since);
                    health.failing = Some((since, error.to_string()));
                }
            }
        });
    }

    /// Has the plugins release what belongs to none of `all`, in the background; pods are attached after that.
    pub fn collect(self: &Arc<Self>, settings: &config::Network, all: &[Attachment]) {
        let Some(list) = self.known.load().sight.chosen.clone() else { return };
        if list.disable_gc || !list.version.has_status_and_gc() {
            return;
        }
        let of_list = |one: &&Attachment| one.list().is_ok_and(|its| its.name == list.name);
        let valid: Vec<_> =
            all.iter().filter(of_list).map(|one| (one.container.clone(), one.interface.clone())).collect();
        self.collected.send_replace(false);
        let (cni, chain) = (Arc::clone(self), chain(settings));
        tokio::spawn(async move {
            let done = apart(move || chain.gc(&list, &valid, &limit(ASK)?).map_err(Error::from)).await;
            if let Err(error) = done {
                tracing::warn!(%error, "CNI plugins did not release what belongs to no pod");
            }
            cni.collected.send_replace(true);
        });
    }

    /// What a pod will be attached with: to be recorded before it is.
    pub async fn lease(
        self: &Arc<Self>,
        identity: &SandboxIdentity,
        settings: &config::Network,
    ) -> Result<Attachment, Error> {
        let (cni, own) = (Arc::clone(self), settings.clone());
        blocking::run(move || cni.look_now(&own)).await;
        let known = self.known.load_full();
        let Some(list) = &known.sight.chosen else {
            return Err(Error::NetworkNotReady(known.fault.clone().unwrap_or_default()));
        };
        let attachment = Attachment {
            file: list.file.clone(),
            conflist: list.text.clone(),
            container: identity.id.clone(),
            netns: identity.netns.clone().unwrap_or_default(),
            interface: DEFAULT_LINK.to_owned(),
            args: pod::arguments(&identity.config, &identity.id),
            capabilities: pod::capabilities(identity, list)?,
            result: None,
        };
        attachment.check()?;
        Ok(attachment)
    }

    /// Attaches a pod, and gives the attachment with the plugins' answer. When the pod is to go, the plugins are ended.
    pub async fn add(
        &self,
        attachment: Attachment,
        settings: &config::Network,
        closing: &CancellationToken,
    ) -> Result<Attachment, Error> {
        let mut collected = self.collected.subscribe();
        // Its sender is this.
        let _ = collected.wait_for(|done| *done).await;
        let limit = limit(Duration::from_secs(settings.plugin_seconds))?;
        let chain = chain(settings);
        let end = limit.clone();
        let run = apart(move || {
            let result = chain.add(&attachment, &limit)?;
            Ok(Attachment { result: Some(result), ..attachment })
        });
        tokio::pin!(run);
        tokio::select! {
            done = &mut run => done,
            () = closing.cancelled() => {
                end.end();
                run.await
            }
        }
    }
}

/// Detaches a pod, whatever network is configured by now. What fails for a pod that was never attached whole is told and
/// forgotten: else it could never be removed.
pub async fn del(attachment: &Attachment, settings: &config::Network) -> Result<(), Error> {
    let limit = limit(DEL.min(Duration::from_secs(settings.plugin_seconds)))?;
    let (chain, own) = (chain(settings), attachment.clone());
    let done = apart(move || chain.del(&own, &limit).map_err(Error::from)).await;
    match done {
        Err(error) if attachment.result.is_none() => {
            tracing::warn!(sandbox = attachment.container, %error, "CNI DEL of a pod that was never attached");
            Ok(())
        }
        done => done,
    }
}

fn chain(settings: &config::Network) -> Chain {
    Chain::new(Plugins::new(settings.plugin_dirs.clone()))
}

fn limit(time: Duration) -> Result<Limit, Error> {
    Limit::new(time).map_err(|error| Error::system("make", "a descriptor for CNI plugins", error))
}

/// Runs `work` on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (tell, told) = oneshot::channel();
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name("cni".to_owned())
        .spawn(move || {
            // Nobody is told when the daemon is about to end.
            let _ = tell.send(span.in_scope(work));
        })
        .map_err(|error| Error::system("start", "a thread for CNI plugins", error))?;
    told.await.map_err(|_| Error::Interrupted { operation: "a run", object: "CNI plugins".to_owned() })?
}

/// Why no pod can be attached, with what was seen and what to do.
fn fault(sight: &Sight, settings: &config::Network) -> Option<String> {
    let Some(list) = &sight.chosen else {
        let directories: Vec<_> = settings.conf_dirs.iter().map(|path| path.display().to_string()).collect();
        let mut seen: Vec<_> =
            sight.unread.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect();
        let fault = |fault: &Option<String>| fault.clone().unwrap_or_default();
        seen.extend(sight.seen.iter().map(|one| format!("{}: {}", one.file.display(), fault(&one.fault))));
        if sight.seen.is_empty() {
            seen.push("no file there ends in .conflist, .conf or .json".to_owned());
        }
        return Some(format!(
            "no CNI configuration can be used in {} ({}): install a network add-on, which writes one there, or set \
             network.mode = \"builtin\" in the configuration",
            directories.join(", "),
            seen.join("; ")
        ));
    };
    let plugins = Plugins::new(settings.plugin_dirs.clone());
    let missing: Vec<_> =
        list.programs().filter_map(|kind| plugins.find(kind).err()).map(|error| error.to_string()).collect();
    (!missing.is_empty()).then(|| format!("{}: {}", list.file.display(), missing.join("; ")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::sandbox::files::tests::config;

    fn settings(directory: &Path) -> config::Network {
        config::Network {
            conf_dirs: vec![directory.join("net.d")],
            plugin_dirs: vec![directory.join("bin")],
            ..config::Network::default()
        }
    }

    fn identity() -> SandboxIdentity {
        SandboxIdentity {
            id: "a".repeat(64),
            config: Arc::new(config()),
            created_at: 1,
            netns: Some("/run/netns/x".into()),
            cgroup: "/pods/x".into(),
            own_cgroup: false,
            shm_size: 0,
            volatile: true,
        }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","ipam":{"type":"b"},"capabilities":
        {"portMappings":true,"bandwidth":true,"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true}}]}"#;

    #[tokio::test]
    async fn says_what_is_missing_until_nothing_is() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        let cni = Arc::new(Cni::start(&settings));
        let says = |words: &[&str]| {
            let fault = cni.fault().unwrap();
            assert!(words.iter().all(|word| fault.contains(word)), "{fault}");
        };
        says(&["net.d", "No such file", "builtin"]);
        assert!(matches!(cni.lease(&identity(), &settings).await, Err(Error::NetworkNotReady(_))));
        fs::create_dir(directory.path().join("net.d")).unwrap();
        cni.look(&settings).await;
        says(&["net.d", "no file there ends"]);
        let file = directory.path().join("net.d/10-a.conflist");
        fs::write(&file, &LIST[..20]).unwrap();
        cni.look(&settings).await;
        says(&["10-a.conflist", "whole JSON"]);
        fs::write(&file, LIST).unwrap();
        cni.look(&settings).await;
        says(&["10-a.conflist", "\"a\"", "\"b\"", "bin"]);
        fs::create_dir(directory.path().join("bin")).unwrap();
        for name in ["a", "b"] {
            fs::copy("/bin/true", directory.path().join("bin").join(name)).unwrap();
        }
        cni.look(&settings).await;
        assert_eq!(cni.fault(), None);
    }

    #[tokio::test]
    async fn a_pod_is_described_by_what_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        fs::create_dir(directory.path().join("net.d")).unwrap();
        fs::write(directory.path().join("net.d/10-a.conflist"), LIST).unwrap();
        let cni = Arc::new(Cni::start(&settings));
        let mut pod = identity();
        let mut config = config();
        config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "10M".into());
        config.dns = Some(crate::sandbox::config::Dns { servers: vec![], searches: vec![], options: vec![] });
        pod.config = Arc::new(config.clone());
        let attachment = cni.lease(&pod, &settings).await.unwrap();
        let keys: Vec<_> = attachment.capabilities.keys().map(String::as_str).collect();
        assert_eq!(keys, ["bandwidth", "cgroupPath", "io.kubernetes.cri.pod-annotations"]);
        assert_eq!(attachment.capabilities["bandwidth"]["egressRate"], 10_000_000);
        assert_eq!(attachment.args[1], ("K8S_POD_NAMESPACE".into(), "n".into()));
        config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "much".into());
        pod.config = Arc::new(config.clone());
        let error = cni.lease(&pod, &settings).await.unwrap_err();
        assert!(error.to_string().contains("egress-bandwidth"), "{error}");
        config.annotations.clear();
        config.name.name = "a;K8S_POD_NAME=b".into();
        pod.config = Arc::new(config);
        assert!(cni.lease(&pod, &settings).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn plugins_say_how_they_are_and_are_believed_after_a_while() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path());
        for name in ["net.d", "bin"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let list = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#;
        fs::write(directory.path().join("net.d/10-a.conflist"), list).unwrap();
        let program = directory.path().join("bin/a");
        fs::write(&program, "#!/bin/sh\necho '{\"code\":50,\"msg\":\"no agent\"}'\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let cni = Arc::new(Cni::start(&settings));
        assert_eq!(cni.fault(), None, "it was not asked yet");
        let end = Instant::now() + Duration::from_secs(20);
        while cni.fault().is_none() {
            assert!(Instant::now() < end);
            cni.look(&settings).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(cni.fault().unwrap().contains("no agent"));
        cni.health.lock().unwrap().was_ready = true;
        assert_eq!(cni.fault(), None, "it was ready a moment ago");
        cni.health.lock().unwrap().failing =
            Instant::now().checked_sub(GRACE).map(|since| (since, "gone".to_owned()));
        assert!(cni.fault().is_some());
    }
}
