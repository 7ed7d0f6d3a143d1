//! Who a container's processes are, and what an image or a value may say about it.

use std::fs;

use cove_e2e::{Outcome, pod};
use k8s_cri::v1::*;
use serde_json::json;

use super::{Reached, path, pull, pull_attacker};
use crate::world::World;

attacks!(
    takes_no_orders_from_an_image without "",
    runs_nobody_as_somebody_else without "strict-ids",
    keeps_values_on_their_lines without "one-line",
    has_exactly_its_capabilities without "exact-capabilities",
    gains_nothing_with_no_new_privs without "no-new-privs",
);

/// E13, CVE-2026-53488, CVE-2026-95837: labels of an image in names that steer runtimes make no difference to its container.
/// No code reads them, so there is no guard to take away: the control puts them into the request, where they must be seen.
async fn takes_no_orders_from_an_image(world: &mut World) -> Outcome<Reached> {
    let labels = [
        ("containerd.io/restart.loguri", "binary:///bin/sh"),
        ("io.kubernetes.container.logpath", "/tmp/elsewhere"),
        ("io.kubernetes.cri-o.Mounts", "/:/host"),
        ("cdi.k8s.io/gpu", "vendor.com/gpu=all"),
        ("org.systemd.property.ExecStop", "'/bin/sh'"),
        ("org.criu.checkpoint.container.name", "x"),
        ("cove.restart", "always"),
    ];
    let mut with = path();
    with["Labels"] = json!(labels.iter().copied().collect::<std::collections::BTreeMap<_, _>>());
    with["Labels"]["long"] = "x".repeat(1 << 20).into();
    let plain = pull_attacker(world).await?;
    let labelled = pull(world, "labels", Vec::new(), with).await?;
    let config = world.pod("labels");
    let id = world.run_pod(&config).await?;
    let root = world.place.as_ref().ok_or("needs a daemon of its own")?.root.clone();
    let mut seen = Vec::new();
    for image in [&plain, &labelled] {
        let mut container = pod::container("labels", image, &["attacker", "status"]);
        container.metadata =
            Some(ContainerMetadata { name: "labels".into(), attempt: u32::from(image == &labelled) });
        container.log_path = format!("labels-{}.log", seen.len());
        if image == &labelled && world.control {
            container.annotations =
                labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        }
        let created = match world.create(&id, &config, &container).await {
            Ok(created) => created,
            // A device that the image asked for and the node does not have.
            Err(error) if image == &labelled => return Ok(vec![format!("obeyed the image: {error}")]),
            Err(error) => return Err(error.into()),
        };
        let spec = fs::read_to_string(root.join("containers").join(&created).join("config.json"))?;
        world.start(&created).await?;
        let status = world.exited(&created).await?;
        let log = crate::world::log_text(&fs::read_to_string(&status.log_path)?)?;
        seen.push([
            spec.replace(&created, "ID"),
            log,
            format!("{:?} {:?} {:?}", status.labels, status.annotations, status.mounts),
            format!("{} {}", status.exit_code, status.reason),
        ]);
    }
    let pairs = seen[0].iter().zip(&seen[1]);
    Ok(pairs
        .filter(|(one, other)| one != other)
        .map(|(one, other)| format!("{one} became {other}"))
        .collect())
}

/// Whom each USER is: uid and gid, or nobody.
const USERS: [(&str, Option<&str>); 26] = [
    ("root", Some("0:0")),
    ("0", Some("0:0")),
    ("app", Some("1000:1000")),
    ("1000", Some("1000:1000")),
    ("1", Some("1:0")),
    ("01", Some("1:0")),
    ("1:root", Some("1:0")),
    ("app:50000", Some("1000:50000")),
    ("2147483647", Some("2147483647:0")),
    ("2147483648", Some("2147483648:0")),
    ("4294967294", Some("4294967294:0")),
    ("4294967295", None),
    ("4294967296", None),
    ("99999999999", None),
    ("18446744073709551615", None),
    ("18446744073709551616", None),
    ("wraps", None),
    ("app:4294967296", None),
    ("1:", None),
    (":1", None),
    ("0x1", None),
    ("+1", None),
    (" 1", None),
    ("1 ", None),
    ("-1", None),
    ("nobody-knows", None),
];

/// With lines that lie in wait for a number that is taken for a name, or that wraps.
fn passwd() -> cove_e2e::image::Layer {
    let text = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\nwraps:x:4294967296:4294967296::/:/bin/sh\n\
                4294967296:x:0:0::/:/bin/sh\n";
    cove_e2e::image::Layer::new().file("etc/passwd", 0o644, text)
}

/// E14, CVE-2024-40635, CVE-2026-30892: every form of USER, of the image and of the request.
async fn runs_nobody_as_somebody_else(world: &mut World) -> Outcome<Reached> {
    let config = world.pod("users");
    let id = world.run_pod(&config).await?;
    let mut reached = Reached::new();
    let plain = pull(world, "users", vec![passwd()], path()).await?;
    for (n, (user, expected)) in USERS.into_iter().enumerate() {
        if world.is_shown(&reached) {
            break;
        }
        let mut with = path();
        with["User"] = user.into();
        let of_image = pull(world, &format!("user-{n}"), vec![passwd()], with).await?;
        for (way, image) in [("image", &of_image), ("request", &plain)] {
            let script = "echo $(id -u):$(id -g)";
            let mut container = pod::container(&format!("{way}-{n}"), image, &["sh", "-c", script]);
            if way == "request" {
                pod::security(&mut container).run_as_username = user.into();
            }
            let got = match world.create(&id, &config, &container).await {
                Err(_) => None,
                Ok(created) => match world.start(&created).await {
                    Err(_) => None,
                    Ok(()) => {
                        let status = world.exited(&created).await?;
                        Some(
                            crate::world::log_text(&fs::read_to_string(&status.log_path)?)?.trim().to_owned(),
                        )
                    }
                },
            };
            // A request names a user, and its group by a field of its own.
            let refused = way == "request" && user.contains(':') && got.is_none();
            if got.as_deref() != expected && !refused {
                reached.push(format!("USER {user:?} of the {way} is {got:?}, not {expected:?}"));
            }
        }
    }
    Ok(reached)
}

/// E15, CVE-2022-4318, CVE-2026-15809: values with a real line end, which would make a line of their own in a file that
/// Cove writes or that a program of the container reads. The files are looked at, not the answers.
async fn keeps_values_on_their_lines(world: &mut World) -> Outcome<Reached> {
    let image = pull_attacker(world).await?;
    let mut reached = Reached::new();
    for (n, end) in ["\n", "\r", "\0", "\r\n"].into_iter().enumerate() {
        let value = format!("a{end}evil");
        for field in ["hostname", "searches", "servers", "options", "username", "HOME"] {
            if world.is_shown(&reached) {
                return Ok(reached);
            }
            let mut config = world.pod(&format!("lines-{n}-{}", field.to_lowercase()));
            let mut dns = DnsConfig::default();
            match field {
                "hostname" => config.hostname.clone_from(&value),
                "searches" => dns.searches.push(value.clone()),
                "servers" => dns.servers.push(value.clone()),
                "options" => dns.options.push(value.clone()),
                _ => {}
            }
            config.dns_config = Some(dns);
            let Ok(id) = world.try_run_pod(&config).await else { continue };
            let script =
                "cat /etc/hosts /etc/hostname /etc/resolv.conf /etc/passwd /etc/group | tr '\\r' '\\n'";
            let mut container = pod::container("read", &image, &["sh", "-c", script]);
            match field {
                "username" => pod::security(&mut container).run_as_username.clone_from(&value),
                "HOME" => container.envs.push(KeyValue { key: "HOME".into(), value: value.clone() }),
                _ => {}
            }
            if let Ok(created) = world.create(&id, &config, &container).await
                && world.start(&created).await.is_ok()
            {
                let status = world.exited(&created).await?;
                let text = crate::world::log_text(&fs::read_to_string(&status.log_path)?)?;
                ensure!(text.contains("localhost"), "{text}");
                if text.lines().any(|line| line.starts_with("evil")) {
                    reached.push(format!("{field} {value:?} made a line of its own"));
                }
            }
            world.stop_pod(&id).await?;
            world.remove_pod(&id).await?;
        }
    }
    Ok(reached)
}

/// The value of a line of `attacker status`.
fn field<'a>(text: &'a str, name: &str) -> Outcome<&'a str> {
    let mut lines = text.lines().map(|line| line.rsplit(' ').next().unwrap_or(line));
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.ok_or_else(|| format!("no {name} in {text:?}").into())
}

/// E17, CVE-2022-24769 and its like: what is added and dropped, as root and not, with and without no_new_privs.
async fn has_exactly_its_capabilities(world: &mut World) -> Outcome<Reached> {
    let image = pull_attacker(world).await?;
    let host = fs::read_to_string("/proc/self/status")?;
    let all = host.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).ok_or("no CapBnd")?;
    let all = u64::from_str_radix(all, 16)?;
    // The fourteen that Docker and containerd give: capabilities(7) numbers 0 1 3 4 5 6 7 8 10 13 18 27 29 31.
    let default = 0xa804_25fb_u64;
    let (net_raw, net_admin) = (1 << 13, 1 << 12);
    let table: [(&str, &[&str], &[&str], u64); 7] = [
        ("default", &[], &[], default),
        ("drop-all", &[], &["ALL"], 0),
        ("one", &["CHOWN"], &["ALL"], 1),
        ("more", &["net_admin"], &[], default | net_admin),
        ("other", &["CAP_NET_ADMIN"], &["NET_RAW"], default & !net_raw | net_admin),
        ("all", &["ALL"], &[], all),
        ("all-but", &["ALL"], &["NET_RAW"], all & !net_raw),
    ];
    let config = world.pod("caps");
    let id = world.run_pod(&config).await?;
    let mut reached = Reached::new();
    for (name, add, drop, bounding) in table {
        for (uid, nnp) in [(0, false), (0, true), (1000, false), (1000, true)] {
            if world.is_shown(&reached) {
                return Ok(reached);
            }
            let what = format!("{name}, user {uid}, no_new_privs {nnp}");
            let script = "attacker status; echo end; sleep 1000";
            let mut container = pod::container(&format!("{name}-{uid}-{nnp}"), &image, &["sh", "-c", script]);
            let security = pod::security(&mut container);
            let words = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            security.capabilities = Some(Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                add_ambient_capabilities: Vec::new(),
            });
            security.run_as_user = Some(Int64Value { value: uid });
            security.no_new_privs = nnp;
            let container = world.launch(&id, &config, &container).await?;
            let log = world.wrote(&container, "F end").await?;
            let exec = world.exec(&container, &["attacker", "status"]).await?;
            let held = if uid == 0 { bounding } else { 0 };
            for (kind, text) in [("start", log), ("exec", String::from_utf8(exec.stdout)?)] {
                for (set, expected) in
                    [("CapInh", 0), ("CapPrm", held), ("CapEff", held), ("CapBnd", bounding), ("CapAmb", 0)]
                {
                    let got = u64::from_str_radix(field(&text, set)?, 16)?;
                    if got != expected {
                        reached.push(format!("{what}, {kind}: {set} is {got:x}, not {expected:x}"));
                    }
                }
            }
            world.stop(&container, 0).await?;
        }
    }
    Ok(reached)
}

/// E17: a setuid program of root, as somebody else, at start and in an exec.
async fn gains_nothing_with_no_new_privs(world: &mut World) -> Outcome<Reached> {
    let image = pull_attacker(world).await?;
    let config = world.pod("raised");
    let id = world.run_pod(&config).await?;
    let mut reached = Reached::new();
    for nnp in [false, true] {
        let script = "raised status; echo end; sleep 1000";
        let mut container = pod::container(&format!("raised-{nnp}"), &image, &["sh", "-c", script]);
        let security = pod::security(&mut container);
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.no_new_privs = nnp;
        let container = world.launch(&id, &config, &container).await?;
        let log = world.wrote(&container, "F end").await?;
        let exec = world.exec(&container, &["raised", "status"]).await?;
        for (kind, text) in [("start", log), ("exec", String::from_utf8(exec.stdout)?)] {
            let (uids, effective) = (field(&text, "Uid")?, field(&text, "CapEff")?);
            let raised = uids != "1000100010001000" || effective.bytes().any(|digit| digit != b'0');
            // Without it a setuid program is what it always was: else the other half would show nothing.
            ensure!(raised || nnp, "{kind}: a setuid program without effect: {text}");
            if nnp && (raised || field(&text, "NoNewPrivs")? != "1") {
                reached.push(format!("{kind}: a setuid program is {uids} with {effective}"));
            }
        }
        world.stop(&container, 0).await?;
    }
    Ok(reached)
}
