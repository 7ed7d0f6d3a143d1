//! Turns the text of a configuration file into a `Config`, or says what is wrong on which line.
//!
//! Unknown keys are looked for before the values are read, so that the message can name the key that was meant.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{CgroupDriver, Config, Handler, ImageLimits, ImageOptions, Network, Stream};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}: line {line}: unknown key {key:?}; did you mean {nearest:?}?", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key with its table.
        key: String,
        /// The key of that table that looks most like it.
        nearest: String,
    },
    /// A value that cannot be used.
    #[error("{}: {key} = {value:?}: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// As written.
        value: String,
        /// What would be right.
        reason: &'static str,
    },
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let syntax =
        |error: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() };
    let table = DeTable::parse(text).map_err(syntax)?;
    unknown_keys(text, path, table.get_ref())?;
    let mut config: Config = toml::from_str(text).map_err(syntax)?;
    config.derive();
    match wrong_value(&config) {
        Some((key, value, reason)) => {
            Err(ConfigError::Value { path: path.to_owned(), key: key.into(), value, reason })
        }
        None => Ok(config),
    }
}

/// The keys that exist are those of the defaults as they would be written: no second list to keep.
fn unknown_keys(text: &str, path: &Path, table: &DeTable<'_>) -> Result<(), ConfigError> {
    let known = toml::Table::try_from(Config::default()).expect("the defaults are plain strings and numbers");
    let handler = toml::Table::try_from(Handler::default()).expect("the defaults are plain numbers");
    compare(text, path, "", table, &known, &handler)
}

fn compare(
    text: &str,
    path: &Path,
    prefix: &str,
    found: &DeTable<'_>,
    known: &toml::Table,
    handler: &toml::Table,
) -> Result<(), ConfigError> {
    for (key, value) in found {
        let name = key.get_ref().as_ref();
        let expected = if prefix == "handlers." {
            Some(handler)
        } else {
            let Some(known_value) = known.get(name) else {
                return Err(ConfigError::UnknownKey {
                    path: path.to_owned(),
                    line: line_of(text, key.span().start),
                    key: format!("{prefix}{name}"),
                    nearest: format!("{prefix}{}", nearest(name, known.keys())),
                });
            };
            known_value.as_table()
        };
        // A value where a table belongs (or the reverse) is left to the typed parse, which names both types.
        if let (DeValue::Table(inner), Some(expected)) = (value.get_ref(), expected) {
            compare(text, path, &format!("{prefix}{name}."), inner, expected, handler)?;
        }
    }
    Ok(())
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> &'a str {
    known.min_by_key(|candidate| distance(name, candidate)).map_or("", String::as_str)
}

/// Levenshtein's distance: how many letters to insert, remove or replace.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, letter) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

type Wrong = (&'static str, String, &'static str);

fn wrong_value(config: &Config) -> Option<Wrong> {
    wrong_instance(&config.instance)
        .or_else(|| wrong_paths(config))
        .or_else(|| wrong_listen(config))
        .or_else(|| wrong_network(&config.network))
        .or_else(|| wrong_stream(&config.stream))
        .or_else(|| wrong_limits(config))
}

/// A veth's name is this, a dash and digits of the id, in 15 bytes (IFNAMSIZ less one).
fn wrong_instance(instance: &str) -> Option<Wrong> {
    let mut letters = instance.bytes();
    let first = letters.next().is_some_and(|letter| letter.is_ascii_lowercase());
    let rest = letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-');
    (!first || !rest || instance.len() > 8).then(|| {
        ("instance", instance.to_owned(), "a letter, then up to 7 of a-z, 0-9 and '-' (it begins link names)")
    })
}

fn plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute()
        && !bytes.iter().any(u8::is_ascii_control)
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
}

fn wrong_paths(config: &Config) -> Option<Wrong> {
    let shim = (!config.shim.as_os_str().is_empty()).then_some(("shim", &config.shim));
    [
        ("root", &config.root),
        ("state", &config.state),
        ("netns_dir", &config.netns_dir),
        ("cgroup_parent", &config.cgroup_parent),
    ]
    .into_iter()
    .chain(shim)
    .chain(config.cdi_dirs.iter().map(|path| ("cdi_dirs", path)))
    .chain(config.network.conf_dirs.iter().map(|path| ("network.conf_dirs", path)))
    .chain(config.network.plugin_dirs.iter().map(|path| ("network.plugin_dirs", path)))
    .chain(config.images.hosts_dirs.iter().map(|path| ("images.hosts_dirs", path)))
    .find(|(_, path)| !plain(path))
    .map(|(key, path)| (key, path.display().to_string(), "must be an absolute path without '..'"))
}

fn wrong_listen(config: &Config) -> Option<Wrong> {
    // sun_path of sockaddr_un holds 108 bytes with the final NUL: unix(7). The socket is made under a private name
    // that is up to 16 bytes longer.
    const LONGEST: usize = 91;
    let bad = |address: &&String| {
        address
            .strip_prefix("unix://")
            .is_none_or(|path| !plain(Path::new(path)) || path.len() > LONGEST || path.ends_with('/'))
    };
    if let Some(address) = config.listen.iter().find(bad) {
        return Some((
            "listen",
            address.clone(),
            "must be unix:// and an absolute path of at most 91 bytes (TCP is not served)",
        ));
    }
    config.socket.bits().is_none().then(|| {
        ("socket.mode", config.socket.mode.clone(), "must be permission bits in octal, such as \"0660\"")
    })
}

fn wrong_network(network: &Network) -> Option<Wrong> {
    let parsed: Vec<_> = network.ranges.iter().map(|range| (range, Network::cidr(range))).collect();
    if let Some((range, _)) = parsed.iter().find(|(_, cidr)| cidr.is_none()) {
        return Some((
            "network.ranges",
            (*range).clone(),
            "must be an address and a prefix length, such as \"10.88.0.0/16\"",
        ));
    }
    let families =
        |v4| parsed.iter().filter(|(_, cidr)| cidr.is_some_and(|(ip, _)| ip.is_ipv4() == v4)).count();
    if families(true) > 1 || families(false) > 1 {
        return Some(("network.ranges", network.ranges.join(", "), "at most one range of each family"));
    }
    if let Some((key, _)) =
        [("network.conf_dirs", &network.conf_dirs), ("network.plugin_dirs", &network.plugin_dirs)]
            .into_iter()
            .find(|(_, paths)| paths.is_empty())
    {
        return Some((key, "[]".to_owned(), "must name a directory or more"));
    }
    // They become CNI_PATH, a list with colons.
    if let Some(path) =
        network.plugin_dirs.iter().find(|path| path.as_os_str().as_encoded_bytes().contains(&b':'))
    {
        return Some(("network.plugin_dirs", path.display().to_string(), "must be without ':'"));
    }
    if !(1..=210).contains(&network.plugin_seconds) {
        let why = "must be from 1 to 210: a kubelet waits 240 seconds for a pod";
        return Some(("network.plugin_seconds", network.plugin_seconds.to_string(), why));
    }
    None
}

fn wrong_stream(stream: &Stream) -> Option<Wrong> {
    if !stream.address.is_loopback() {
        let why =
            "must be a loopback address: a URL is all that a client needs, and the kubelet is on this node";
        return Some(("stream.address", stream.address.to_string(), why));
    }
    let is = |path: &Path| !path.as_os_str().is_empty();
    for (key, path) in [
        ("stream.tls_certificate", &stream.tls_certificate),
        ("stream.tls_key", &stream.tls_key),
        ("stream.tls_client_ca", &stream.tls_client_ca),
    ] {
        if is(path) && !plain(path) {
            return Some((key, path.display().to_string(), "must be an absolute path without '..'"));
        }
        if !is(path) && key == "stream.tls_key" && is(&stream.tls_certificate) {
            return Some((key, String::new(), "must name the key of tls_certificate"));
        }
        if is(path) && !is(&stream.tls_certificate) {
            return Some((key, path.display().to_string(), "needs tls_certificate, too"));
        }
    }
    (!(1..=7 * 24 * 3600).contains(&stream.idle_seconds)).then(|| {
        ("stream.idle_seconds", stream.idle_seconds.to_string(), "must be from 1 to 604800, which is a week")
    })
}

fn wrong_limits(config: &Config) -> Option<Wrong> {
    if tracing_subscriber::EnvFilter::try_new(&config.log.level).is_err() {
        let level = config.log.level.clone();
        return Some((
            "log.level",
            level,
            "must be a level, or directives such as \"info,cove::image=debug\"",
        ));
    }
    if config.cgroup_driver == CgroupDriver::Systemd {
        return Some(("cgroup_driver", "systemd".to_owned(), "not built yet; use \"cgroupfs\" or \"auto\""));
    }
    wrong_images(&config.images)
        .or_else(|| wrong_image_limits(&config.image_limits))
        .or_else(|| wrong_handlers(config))
}

fn wrong_images(images: &ImageOptions) -> Option<Wrong> {
    let parallel =
        |key, count: usize| (!(1..=32).contains(&count)).then(|| (key, count.to_string(), "must be 1 to 32"));
    let seconds = |key, count: u64| {
        (!(1..=24 * 3600).contains(&count))
            .then(|| (key, count.to_string(), "must be 1 to 86400, which is a day"))
    };
    let pattern = images.pinned.iter().find(|pattern| !crate::image::is_pattern(pattern)).map(|pattern| {
        let why = "must be a whole name, or PREFIX* or *INFIX*";
        ("images.pinned", pattern.clone(), why)
    });
    pattern
        .or_else(|| parallel("images.max_parallel_layers", images.max_parallel_layers))
        .or_else(|| parallel("images.max_parallel_ranges", images.max_parallel_ranges))
        .or_else(|| seconds("images.progress_seconds", images.progress_seconds))
        .or_else(|| seconds("images.max_wait_seconds", images.max_wait_seconds))
}

/// overlayfs takes at most 500 lower layers (OVL_MAX_STACK of the kernel); two are kept for the writable one and what
/// Cove may add.
fn wrong_image_limits(limits: &ImageLimits) -> Option<Wrong> {
    (!(1..=498).contains(&limits.layers)).then(|| {
        let why = "must be 1 to 498: the kernel stacks no more";
        ("image_limits.layers", limits.layers.to_string(), why)
    })
}

fn wrong_handlers(config: &Config) -> Option<Wrong> {
    config.handlers.iter().find_map(|(name, handler)| wrong_handler(name, handler))
}

/// Names are those that a RuntimeClass can carry: a DNS label.
fn wrong_handler(name: &str, handler: &Handler) -> Option<Wrong> {
    let label = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !label || name.len() > 63 || name.starts_with('-') || name.ends_with('-') {
        return Some(("handlers", name.to_owned(), "a handler's name has up to 63 of a-z, 0-9 and '-'"));
    }
    (handler.shm_size == 0)
        .then(|| ("handlers.shm_size", "0".to_owned(), "must be the bytes of /dev/shm, such as 67108864"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("x.toml"))
    }

    #[test]
    fn no_text_is_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn defaults_survive_being_written_and_read() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&text).unwrap(), Config::default());
    }

    #[test]
    fn other_keys_follow_the_instance() {
        let config = parse("instance = \"two\"").unwrap();
        assert_eq!(config.root, Path::new("/var/lib/two"));
        assert_eq!(config.state, Path::new("/run/two"));
        assert_eq!(config.listen, ["unix:///run/two/cove.sock"]);
        assert_eq!(config.cgroup_parent, Path::new("/two"));
        assert!(config.handler("").is_some());
    }

    #[test]
    fn unknown_keys_name_line_and_nearest_key() {
        let cases = [
            ("instanse = \"a\"", "line 1: unknown key \"instanse\"; did you mean \"instance\"?"),
            (
                "\n[log]\nlevel = \"info\"\nformt = \"json\"",
                "line 4: unknown key \"log.formt\"; did you mean \"log.format\"?",
            ),
            ("[netwrk]\nmode = \"none\"", "line 1: unknown key \"netwrk\"; did you mean \"network\"?"),
            (
                "[handlers.big]\nshm_sise = 1",
                "line 2: unknown key \"handlers.big.shm_sise\"; did you mean \"handlers.big.shm_size\"?",
            ),
        ];
        for (text, message) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn wrong_values_name_key_and_value() {
        let cases = [
            ("instance = \"Cove\"", "instance"),
            ("instance = \"too-long-name\"", "instance"),
            ("instance = \"\"", "instance"),
            ("root = \"var\"", "root"),
            ("state = \"/run/../etc\"", "state"),
            ("listen = [\"tcp://127.0.0.1:1\"]", "listen"),
            ("listen = [\"unix://cove.sock\"]", "listen"),
            ("[socket]\nmode = \"rw\"", "socket.mode"),
            ("[network]\nranges = [\"10.0.0.0/33\"]", "network.ranges"),
            ("[network]\nranges = [\"10.0.0.0/24\", \"10.1.0.0/24\"]", "network.ranges"),
            ("[network]\nconf_dirs = []", "network.conf_dirs"),
            ("[network]\nconf_dirs = [\"net.d\"]", "network.conf_dirs"),
            ("[network]\nplugin_dirs = [\"/a:/b\"]", "network.plugin_dirs"),
            ("[network]\nplugin_seconds = 0", "network.plugin_seconds"),
            ("cgroup_driver = \"systemd\"", "cgroup_driver"),
            ("[stream]\ntls_certificate = \"a.crt\"", "stream.tls_certificate"),
            ("[stream]\ntls_certificate = \"/a.crt\"", "stream.tls_key"),
            ("[stream]\ntls_key = \"/a.key\"", "stream.tls_key"),
            ("[stream]\ntls_client_ca = \"/ca.crt\"", "stream.tls_client_ca"),
            ("[log]\nlevel = \"cove=loud\"", "log.level"),
            ("[images]\nhosts_dirs = [\"hosts\"]", "images.hosts_dirs"),
            ("cdi_dirs = [\"/etc/cdi\", \"cdi\"]", "cdi_dirs"),
            ("[images]\npinned = [\"a*b\"]", "images.pinned"),
            ("[images]\nmax_parallel_layers = 0", "images.max_parallel_layers"),
            ("[images]\nmax_parallel_ranges = 33", "images.max_parallel_ranges"),
            ("[images]\nprogress_seconds = 0", "images.progress_seconds"),
            ("[images]\nmax_wait_seconds = 86401", "images.max_wait_seconds"),
            ("[image_limits]\nlayers = 499", "image_limits.layers"),
            ("[handlers.UP]\n", "handlers"),
        ];
        for (text, key) in cases {
            match parse(text) {
                Err(ConfigError::Value { key: found, .. }) => assert_eq!(found, key, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn wrong_types_name_the_line() {
        let error = parse("\n[log]\nlevel = 3").unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        assert!(matches!(parse("instance ="), Err(ConfigError::Syntax { .. })));
    }
}
