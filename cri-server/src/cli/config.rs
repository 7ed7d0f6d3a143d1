//! `cove config default` and `cove config check`.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::Config;

/// The defaults with a word on each key, as packages install them.
const DEFAULT: &str = include_str!("../../../manifests/config.toml");

/// What to do with configurations.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Print the defaults, with a word on each key
    Default,
    /// Check a file without starting anything: exit code 0 if the daemon would start with it
    Check {
        /// The file; without it the one that the daemon would read
        file: Option<PathBuf>,
    },
}

pub(super) fn run(action: &Action, option: Option<&Path>) -> Result<(), Box<dyn Error>> {
    match action {
        Action::Default => std::io::stdout().write_all(DEFAULT.as_bytes())?,
        Action::Check { file } => {
            Config::load(file.as_deref().or(option))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line `#key = value` of the file is a default that follows from other keys.
    fn with_derived_keys() -> String {
        let derived = |line: &str| {
            line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).map(str::to_owned)
        };
        DEFAULT.lines().map(|line| derived(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let parse = |text: &str| Config::parse(text, Path::new("manifests/config.toml")).unwrap();
        assert_eq!(parse(DEFAULT), Config::default());
        assert_eq!(parse(&with_derived_keys()), Config::default());
    }

    #[test]
    fn every_key_is_printed_and_documented() {
        let documentation = include_str!("../../../docs/configuration.md");
        let printed: toml::Table = with_derived_keys().parse().unwrap();
        let known = toml::Table::try_from(Config::default()).unwrap();
        for (key, value) in &known {
            let Some(found) = printed.get(key) else { panic!("{key} is not printed") };
            match value.as_table() {
                None => assert!(documentation.contains(&format!("`{key}`")), "{key} is not documented"),
                Some(table) => {
                    for inner in inner_keys(key, table) {
                        let name = inner.rsplit('.').next().unwrap();
                        let found = if key == "handlers" { &found[""][name] } else { &found[name] };
                        assert!(!found.is_table(), "{inner} is not printed");
                        assert!(documentation.contains(&format!("`{inner}`")), "{inner} is not documented");
                    }
                }
            }
        }
    }

    fn inner_keys(key: &str, table: &toml::Table) -> Vec<String> {
        if key == "handlers" {
            return table[""]
                .as_table()
                .unwrap()
                .keys()
                .map(|name| format!("handlers.NAME.{name}"))
                .collect();
        }
        table.keys().map(|name| format!("{key}.{name}")).collect()
    }
}
