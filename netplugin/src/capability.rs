//! What plugins may ask to be told of a pod (CNI CONVENTIONS.md, "Well-known Capabilities"), by the names under which a
//! network configuration asks for it. A plugin is told what it asks for, and no more.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::error::CniError;

/// Host ports.
pub const PORT_MAPPINGS: &str = "portMappings";
/// Limits of what comes and goes.
pub const BANDWIDTH: &str = "bandwidth";
/// Name servers and so on of the pod.
pub const DNS: &str = "dns";
/// The pod's cgroup.
pub const CGROUP_PATH: &str = "cgroupPath";
/// The pod's annotations, by the name that containerd gave it, which plugins know.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// Limits that users of Kubernetes write at a pod (its documentation, "Support traffic shaping").
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// As [`INGRESS`], for what leaves the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What Kubernetes takes for such a limit, in bits a second: 1k to 1P.
const RATES: std::ops::RangeInclusive<u128> = 1_000..=1_000_000_000_000_000;
/// The burst, in bits, for which Kubernetes has no words: what its own code gave plugins as "no limit".
const BURST: u32 = i32::MAX as u32;

/// A host port as the capability `portMappings` has it.
pub fn port_mapping(protocol: &str, host_port: u16, container_port: u16, host_ip: Option<IpAddr>) -> Value {
    json!({
        "hostPort": host_port,
        "containerPort": container_port,
        "protocol": protocol,
        "hostIP": host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

/// The capability `bandwidth` of a pod with these annotations; none without a limit.
///
/// # Errors
/// [`CniError::Asked`] for a limit that is none.
pub fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, CniError> {
    let mut value = json!({});
    for (annotation, key) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
        if let Some(text) = annotations.get(annotation) {
            let rate = rate(text).map_err(|reason| CniError::Asked {
                what: format!("annotation {annotation}"),
                value: text.clone(),
                reason: reason.to_owned(),
            })?;
            value[format!("{key}Rate")] = json!(rate);
            value[format!("{key}Burst")] = json!(BURST);
        }
    }
    Ok((value != json!({})).then_some(value))
}

fn rate(text: &str) -> Result<u64, &'static str> {
    let rate = quantity(text).ok_or("is not a quantity, such as 10M or 512Ki")?;
    if !RATES.contains(&rate) {
        return Err("is not from 1k to 1P bits a second");
    }
    u64::try_from(rate).map_err(|_| "is too large")
}

/// A quantity of Kubernetes without a sign or an exponent, rounded up to a whole number.
fn quantity(text: &str) -> Option<u128> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (times, parts): (u128, u128) = match suffix {
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1000_u128.pow(2), 1),
        "G" => (1000_u128.pow(3), 1),
        "T" => (1000_u128.pow(4), 1),
        "P" => (1000_u128.pow(5), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // More digits than any limit has; with them the numbers below cannot overflow.
    if whole.len() > 18 || fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    Some((digits * times).div_ceil(scale * parts))
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_quantities_of_kubernetes() {
        for (text, expected) in [
            ("1k", Ok(1000)),
            ("10M", Ok(10_000_000)),
            ("1.5M", Ok(1_500_000)),
            (".5M", Ok(500_000)),
            ("1Mi", Ok(1 << 20)),
            ("1000", Ok(1000)),
            ("1000000m", Ok(1000)),
            ("1P", Ok(1_000_000_000_000_000)),
            ("999", Err("from 1k")),
            ("0", Err("from 1k")),
            ("2P", Err("from 1k")),
            ("-1M", Err("quantity")),
            ("", Err("quantity")),
            (".", Err("quantity")),
            ("M", Err("quantity")),
            ("1.1.1M", Err("quantity")),
            ("10 M", Err("quantity")),
            ("10Mb", Err("quantity")),
            ("1000000000000000000000", Err("quantity")),
        ] {
            match (rate(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn only_limits_that_are_there_are_told() {
        let annotations = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(bandwidth(&annotations(&[("a", "b")])).unwrap(), None);
        let found = bandwidth(&annotations(&[(INGRESS, "10M")])).unwrap().unwrap();
        assert_eq!(found, json!({"ingressRate": 10_000_000, "ingressBurst": 2_147_483_647}));
        let error = bandwidth(&annotations(&[(EGRESS, "lots")])).unwrap_err().to_string();
        assert!(error.contains(EGRESS) && error.contains("lots"), "{error}");
        assert_eq!(port_mapping("sctp", 1, 2, None)["hostIP"], "");
    }

    proptest! {
        #[test]
        fn no_quantity_overflows(text in "[0-9.]{0,30}(m|k|M|P|Pi|E)?") {
            let _ = rate(&text);
        }
    }
}
