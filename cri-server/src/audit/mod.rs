//! What is in the kernel and on disk, against the records: orphans have no record, and what a record says to be there may
//! be missing. Works beside a daemon, and without one.
//!
//! A record is written before the effect that it describes and goes after it, and ids are never given twice. So what
//! was seen in the kernel, and has no record that is read after that, is either on its way out, or left over. It is
//! looked at again and again for as long as an operation may take to end; what every look finds is told, and with nothing
//! of that left the answer comes at once. With a daemon at work its own locks are not needed for that, nor is its answer: a
//! daemon that hangs can be audited, too.
//!
//! An orphan is only what neither this daemon nor its next start takes away by itself: what waits in the trash, or for a
//! pull's next try, is none.

mod files;
mod finding;
mod known;
mod missing;
mod network;
mod orphans;
mod repair;
mod seen;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::Error;
use crate::store::{Claims, RootLock};
use finding::Finding;
pub(crate) use finding::{Outcome, Result};
use known::Known;
use seen::Seen;

/// Between the first and the last look: a step of an operation that is under way takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What an audit looks at.
#[derive(Debug)]
struct Subject<'a> {
    config: &'a Config,
    /// Pid of the daemon, if there is one.
    daemon: Option<i32>,
    /// This process holds the locks that a daemon needs.
    is_alone: bool,
}

/// Finds what is left over and what is missing; with `repair`, removes what is left over. Blocking.
pub(crate) fn audit(config: &Config, repair: bool) -> std::result::Result<Vec<Result>, Error> {
    let refuse_others =
        || if repair { Claims::of(&config.instance).refuse_others(&config.root) } else { Ok(()) };
    refuse_others()?;
    let daemon = daemon_of(config)?;
    // Without a daemon nobody must start one while things are removed.
    let locks = match daemon {
        None if repair => {
            let there = [&config.root, &config.state].into_iter().filter(|root| root.exists());
            there.map(|root| RootLock::take(root)).collect::<std::result::Result<Vec<_>, _>>()?
        }
        Some(_) | None => Vec::new(),
    };
    let subject = Subject { config, daemon, is_alone: !locks.is_empty() };
    let end = Instant::now() + PATIENCE;
    let mut found = look(&subject)?;
    let mut is_last = false;
    while !found.is_empty() && !is_last {
        std::thread::sleep(PAUSE);
        is_last = Instant::now() >= end;
        let again = look(&subject)?;
        found.retain(|finding| again.contains(finding));
    }
    refuse_others()?;
    let found = found.into_iter();
    Ok(if repair { repair::all(&subject, found.collect()) } else { found.map(Result::told).collect() })
}

const CHANGED: Error =
    Error::Unavailable("a daemon was started, or has ended, while it was audited: run the audit again");

/// The daemon that holds the roots.
fn daemon_of(config: &Config) -> std::result::Result<Option<i32>, Error> {
    match RootLock::holder(&config.root)? {
        // It is held, and its holder has not written who it is yet.
        Some(0) => Err(CHANGED),
        holder => Ok(holder),
    }
}

fn look(subject: &Subject<'_>) -> std::result::Result<BTreeSet<Finding>, Error> {
    // Read once before, for where the kubelet's own cgroups are.
    let seen = Seen::now(subject, &Known::read(subject.config)?)?;
    let known = Known::read(subject.config)?;
    // Else one that has just been started would be taken for a stranger in the shims' cgroup, where a thread of it lives.
    if !subject.is_alone && daemon_of(subject.config)? != subject.daemon {
        return Err(CHANGED);
    }
    let mut found = BTreeSet::new();
    orphans::find(subject, &seen, &known, &mut found);
    network::find(subject, &seen, &known, &mut found)?;
    files::find(subject, &seen, &known, &mut found);
    missing::find(&known, &mut found)?;
    Ok(found)
}
