//! Requests become domain types, or are refused with the path of the field; views become replies.
//!
//! A field that is not built yet is refused by name: a request is never carried out in part.

pub(super) mod container;
mod device;
pub(super) mod field;
pub(super) mod filter;
pub(super) mod image;
pub(super) mod metrics;
mod mount;
pub(super) mod own;
pub(super) mod process;
pub(super) mod resources;
pub(super) mod sandbox;
pub(super) mod security;
pub(super) mod signal;
pub(super) mod stats;
pub(super) mod status;
pub(super) mod stream;
#[cfg(test)]
mod table;
pub(super) mod verbose;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::super::wire;
    use super::{container, sandbox};
    use crate::config::Config;

    fn pod() -> wire::PodSandboxConfig {
        wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "n".into(),
                attempt: 1,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/x".into(),
            dns_config: Some(wire::DnsConfig {
                servers: vec!["10.0.0.1".into()],
                searches: vec!["a.b".into()],
                options: vec!["ndots:5".into()],
            }),
            ..Default::default()
        }
    }

    fn process() -> wire::ContainerConfig {
        wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: "c".into(), attempt: 1 }),
            image: Some(wire::ImageSpec { image: "i".into(), ..Default::default() }),
            command: vec!["sh".into()],
            log_path: "c/0.log".into(),
            linux: Some(wire::LinuxContainerConfig {
                resources: Some(wire::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
                security_context: Some(wire::LinuxContainerSecurityContext {
                    run_as_user: Some(wire::Int64Value { value: 1000 }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    /// The same message with some of its bytes replaced, if it still is a message.
    fn damaged<M: Message + Default>(message: &M, damage: &[(prop::sample::Index, u8)]) -> Option<M> {
        let mut bytes = message.encode_to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = *byte;
        }
        M::decode(bytes.as_slice()).ok()
    }

    proptest! {
        /// Whatever gets through has no line break where Cove writes lines, and leads nowhere else.
        #[test]
        fn damaged_requests_are_refused_or_harmless(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
        ) {
            let whole = sandbox::config(
                wire::RunPodSandboxRequest { config: Some(pod()), ..Default::default() },
                &Config::default(),
            )
            .unwrap();
            let request = damaged(&pod(), &damage)
                .map(|config| wire::RunPodSandboxRequest { config: Some(config), ..Default::default() });
            if let Some(Ok(taken)) = request.map(|request| sandbox::config(request, &Config::default())) {
                let lines = taken.dns.iter().flat_map(|dns| [&dns.servers, &dns.searches, &dns.options]).flatten();
                for line in lines.chain([&taken.hostname, &taken.name.name, &taken.name.namespace]) {
                    prop_assert!(!line.contains(char::is_control), "{line:?}");
                }
                prop_assert!(taken.log_directory.is_none_or(|path| path.is_absolute()));
            }
            if let Some(Ok(taken)) = damaged(&process(), &damage).map(|config| container::config(Some(config), &whole)) {
                prop_assert!(taken.log_path.is_none_or(|path| path.is_relative()));
                prop_assert!(taken.run_as.user != Some(u32::MAX));
            }
        }
    }
}
