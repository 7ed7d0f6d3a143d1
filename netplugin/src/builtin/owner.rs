//! Whose the table with an instance's name is: one that another program made is neither changed nor removed.

use super::NetworkError;
use super::nft;
use super::table::CHAINS;

/// What the table of an instance is.
#[derive(Debug, PartialEq, Eq)]
enum Table {
    /// There is none.
    Missing,
    /// As this program writes it, in one transaction: with each of its chains, and these of somebody else.
    Ours(Vec<String>),
    /// It lacks chains that ours always has.
    Another,
}

/// Fails where the table of an instance is another program's.
///
/// # Errors
/// [`NetworkError::Another`]; nft's refusal.
pub(super) fn may_write(instance: &str) -> Result<(), NetworkError> {
    match look(instance)? {
        Table::Missing | Table::Ours(_) => Ok(()),
        Table::Another => Err(NetworkError::Another {
            what: "table inet",
            name: instance.to_owned(),
            todo: format!(
                "remove it (nft delete table inet {instance}), or give this daemon another `instance`"
            ),
        }),
    }
}

/// The table of an instance is there and can go.
///
/// # Errors
/// [`NetworkError::Another`] where it holds chains of somebody else; nft's refusal.
pub(super) fn may_remove(instance: &str) -> Result<bool, NetworkError> {
    match look(instance)? {
        Table::Missing | Table::Another => Ok(false),
        Table::Ours(strange) if strange.is_empty() => Ok(true),
        Table::Ours(strange) => Err(NetworkError::Another {
            what: "in table inet",
            name: instance.to_owned(),
            todo: format!("it stays for its chains {}, which are not Cove's", strange.join(", ")),
        }),
    }
}

fn look(instance: &str) -> Result<Table, NetworkError> {
    Ok(nft::list_table(instance)?.map_or(Table::Missing, |text| of(&text)))
}

/// From what `nft list table` says.
fn of(text: &str) -> Table {
    let chain = |line: &str| Some(line.strip_prefix("\tchain ")?.strip_suffix(" {")?.to_owned());
    let chains: Vec<String> = text.lines().filter_map(chain).collect();
    let has = |ours: &str| chains.iter().any(|chain| chain == ours);
    if !CHAINS.iter().all(|(ours, _)| has(ours)) {
        return Table::Another;
    }
    Table::Ours(chains.into_iter().filter(|chain| CHAINS.iter().all(|(ours, _)| ours != chain)).collect())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tells_tables_apart() {
        let chain = |name: &str| format!("\tchain {name} {{\n\t\tip saddr @chain {{\n\t}}\n\n");
        let table = |names: &[&str]| {
            let chains: String = names.iter().map(|name| chain(name)).collect();
            format!("table inet cove {{\n\tset pods4 {{\n\t\ttype ipv4_addr\n\t}}\n{chains}}}\n")
        };
        let ours = CHAINS.map(|(name, _)| name);
        assert_eq!(of(&table(&ours)), Table::Ours(Vec::new()));
        assert_eq!(of(&table(&[&ours[..], &["theirs"]].concat())), Table::Ours(vec!["theirs".to_owned()]));
        for another in [&[][..], &["theirs"], &["guard"], &ours[1..]] {
            assert_eq!(of(&table(another)), Table::Another, "{another:?}");
        }
    }
}
