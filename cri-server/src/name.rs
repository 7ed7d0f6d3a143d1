//! Who owns a name, who joins whom, and who waits: names never get stuck.
//!
//! A name is a key (of a sandbox: namespace, name, uid, attempt; of a container: sandbox id, name, attempt) and the
//! request that took it. The same request joins the work under way and gets its result; while work is being undone it
//! waits and then begins anew; once it is done it is told the same id, as long as the object lives. Another request
//! is refused with the owner's id. Whether a finished owner still lives is asked of the object itself, so a name
//! cannot outlive it. Nothing here waits under the lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::detach::Outcome;
use crate::error::Error;

/// The names of one kind of object. `R` is the request, by which a retry is told from another wish.
#[derive(Debug)]
pub struct Names<K, R> {
    table: Arc<Mutex<HashMap<K, Entry<R>>>>,
}

impl<K, R> Default for Names<K, R> {
    fn default() -> Self {
        Self { table: Arc::default() }
    }
}

#[derive(Debug)]
struct Entry<R> {
    id: String,
    request: Arc<R>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Somebody makes the object; or undoes it.
    Working { undoing: bool, crew: Arc<Crew>, outcome: watch::Receiver<Option<Outcome<String>>> },
    /// The object was made; it owns the name while it lives.
    Finished,
}

/// Those who wait for the same work.
#[derive(Debug, Default)]
struct Crew {
    waiting: AtomicUsize,
    taken: AtomicBool,
    left: Notify,
}

/// What a caller who wants a name is to do.
#[derive(Debug)]
pub enum Claim<K: Eq + Hash + Clone, R> {
    /// Make the object (in a task that ends with [`Owner::finish`]) and wait like everyone else.
    Begin(Owner<K, R>, Waiter),
    /// Wait: the same request is being worked on.
    Join(Waiter),
    /// Wait for the end of the undoing, then claim again.
    Retry(Waiter),
    /// It is made already.
    Finished(String),
    /// It belongs to this id, which was asked for differently.
    Taken(String),
}

impl<K: Eq + Hash + Clone, R: PartialEq> Names<K, R> {
    /// Claims `key` for `request`; a new owner is called `id`. `lives` tells whether a finished owner still lives.
    pub fn claim(
        &self,
        key: &K,
        request: &Arc<R>,
        id: impl FnOnce() -> Result<String, Error>,
        lives: impl Fn(&str) -> bool,
    ) -> Result<Claim<K, R>, Error> {
        let mut table = lock(&self.table);
        if let Some(entry) = table.get(key) {
            let same = entry.request == *request;
            match &entry.stage {
                Stage::Working { undoing: true, crew, outcome } => {
                    return Ok(Claim::Retry(Waiter::new(&entry.id, crew, outcome)));
                }
                Stage::Working { crew, outcome, .. } if same => {
                    return Ok(Claim::Join(Waiter::new(&entry.id, crew, outcome)));
                }
                Stage::Finished if !lives(&entry.id) => {}
                Stage::Finished if same => return Ok(Claim::Finished(entry.id.clone())),
                Stage::Working { .. } | Stage::Finished => return Ok(Claim::Taken(entry.id.clone())),
            }
        }
        let id = id()?;
        let (sender, outcome) = watch::channel(None);
        let crew = Arc::<Crew>::default();
        let waiter = Waiter::new(&id, &crew, &outcome);
        let stage = Stage::Working { undoing: false, crew: Arc::clone(&crew), outcome };
        table.insert(key.clone(), Entry { id: id.clone(), request: Arc::clone(request), stage });
        let owner =
            Owner { table: Arc::clone(&self.table), key: key.clone(), id, sender, crew, finished: false };
        Ok(Claim::Begin(owner, waiter))
    }

    /// An object found in the records at start-up owns its name again.
    pub fn restore(&self, key: K, id: &str, request: &Arc<R>) {
        let entry = Entry { id: id.to_owned(), request: Arc::clone(request), stage: Stage::Finished };
        lock(&self.table).insert(key, entry);
    }

    /// The object is gone: its name need not be remembered. (A name that somebody else has by now is left to them.)
    pub fn forget(&self, key: &K, id: &str) {
        let mut table = lock(&self.table);
        if table.get(key).is_some_and(|entry| entry.id == id && matches!(entry.stage, Stage::Finished)) {
            table.remove(key);
        }
    }
}

fn lock<K, R>(table: &Mutex<HashMap<K, Entry<R>>>) -> MutexGuard<'_, HashMap<K, Entry<R>>> {
    // Every change is one insert, remove or assignment: a panic cannot leave half of one.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one who makes the object of a name. Dropped before its end, it frees the name and sends everyone home.
#[derive(Debug)]
pub struct Owner<K: Eq + Hash + Clone, R> {
    table: Arc<Mutex<HashMap<K, Entry<R>>>>,
    key: K,
    id: String,
    sender: watch::Sender<Option<Outcome<String>>>,
    crew: Arc<Crew>,
    finished: bool,
}

impl<K: Eq + Hash + Clone, R> Owner<K, R> {
    /// The id of the object to be made.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Somebody waits for the result.
    pub fn is_wanted(&self) -> bool {
        self.crew.waiting.load(Ordering::SeqCst) > 0
    }

    /// The work failed and is being undone: who comes now waits, then begins anew.
    pub fn undoing(&self) {
        if let Some(Entry { stage: Stage::Working { undoing, .. }, .. }) =
            lock(&self.table).get_mut(&self.key)
        {
            *undoing = true;
        }
    }

    /// The end of the work, for everyone who waits. A failure frees the name.
    pub fn finish(mut self, result: Result<(), Error>) -> Unclaimed {
        self.finished = true;
        {
            let mut table = lock(&self.table);
            match (&result, table.get_mut(&self.key)) {
                (Ok(()), Some(entry)) => entry.stage = Stage::Finished,
                (Err(_), Some(_)) => {
                    table.remove(&self.key);
                }
                (_, None) => {}
            }
        }
        self.sender.send_replace(Some(result.map(|()| self.id.clone()).map_err(Arc::new)));
        Unclaimed(Arc::clone(&self.crew))
    }
}

impl<K: Eq + Hash + Clone, R> Drop for Owner<K, R> {
    fn drop(&mut self) {
        if !self.finished {
            lock(&self.table).remove(&self.key);
        }
    }
}

/// Tells whether anybody took the result.
#[derive(Debug)]
pub struct Unclaimed(Arc<Crew>);

impl Unclaimed {
    /// Waits until everyone who waited has taken the result or left: true if nobody took it. Ends soon, since what
    /// they waited for is there.
    pub async fn nobody_took_it(&self) -> bool {
        loop {
            let left = self.0.left.notified();
            if self.0.taken.load(Ordering::SeqCst) {
                return false;
            }
            if self.0.waiting.load(Ordering::SeqCst) == 0 {
                return true;
            }
            left.await;
        }
    }
}

/// One who waits for the work of a name.
#[derive(Debug)]
pub struct Waiter {
    /// The id of the object that is being made, or unmade.
    pub id: String,
    crew: Arc<Crew>,
    outcome: watch::Receiver<Option<Outcome<String>>>,
}

impl Waiter {
    fn new(id: &str, crew: &Arc<Crew>, outcome: &watch::Receiver<Option<Outcome<String>>>) -> Self {
        crew.waiting.fetch_add(1, Ordering::SeqCst);
        Self { id: id.to_owned(), crew: Arc::clone(crew), outcome: outcome.clone() }
    }

    /// The result; none if the work was ended without one.
    pub async fn outcome(mut self) -> Option<Outcome<String>> {
        let outcome = self.outcome.wait_for(Option::is_some).await.ok()?.clone();
        self.crew.taken.store(true, Ordering::SeqCst);
        outcome
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.crew.waiting.fetch_sub(1, Ordering::SeqCst);
        self.crew.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    type Table = Names<&'static str, u32>;

    fn claim(names: &Table, request: u32, live: bool) -> Claim<&'static str, u32> {
        names.claim(&"pod", &Arc::new(request), || Ok(format!("id{request}")), |_| live).unwrap()
    }

    #[tokio::test]
    async fn sixty_four_at_once_are_one() {
        let names = Arc::new(Table::default());
        let mut calls = Vec::new();
        for _ in 0..64 {
            let names = Arc::clone(&names);
            calls.push(tokio::spawn(async move {
                match claim(&names, 1, true) {
                    Claim::Begin(owner, waiter) => {
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            owner.finish(Ok(()))
                        });
                        (1, waiter.outcome().await.unwrap().unwrap())
                    }
                    Claim::Join(waiter) => (0, waiter.outcome().await.unwrap().unwrap()),
                    Claim::Finished(id) => (0, id),
                    other => panic!("{other:?}"),
                }
            }));
        }
        let mut begun = 0;
        for call in calls {
            let (first, id) = call.await.unwrap();
            begun += first;
            assert_eq!(id, "id1");
        }
        assert_eq!(begun, 1);
    }

    #[tokio::test]
    async fn another_request_is_told_the_owner_while_it_lives() {
        let names = Table::default();
        let Claim::Begin(owner, _waiter) = claim(&names, 1, true) else { panic!() };
        assert!(matches!(claim(&names, 2, true), Claim::Taken(id) if id == "id1"));
        owner.finish(Ok(()));
        assert!(matches!(claim(&names, 2, true), Claim::Taken(id) if id == "id1"));
        assert!(matches!(claim(&names, 1, true), Claim::Finished(id) if id == "id1"));
        // NOTREADY and EXITED objects own no name.
        assert!(matches!(claim(&names, 2, false), Claim::Begin(owner, _) if owner.id() == "id2"));
    }

    #[tokio::test]
    async fn undoing_makes_everyone_wait_and_begin_anew() {
        let names = Table::default();
        let Claim::Begin(owner, first) = claim(&names, 1, true) else { panic!() };
        owner.undoing();
        let Claim::Retry(second) = claim(&names, 1, true) else { panic!() };
        let Claim::Retry(third) = claim(&names, 2, true) else { panic!() };
        owner.finish(Err(Error::Unavailable("broken")));
        for waiter in [first, second, third] {
            assert!(waiter.outcome().await.unwrap().is_err());
        }
        assert!(matches!(claim(&names, 2, true), Claim::Begin(..)));
    }

    #[tokio::test]
    async fn a_lost_owner_frees_the_name() {
        let names = Table::default();
        let Claim::Begin(owner, waiter) = claim(&names, 1, true) else { panic!() };
        drop(owner);
        assert!(waiter.outcome().await.is_none());
        assert!(matches!(claim(&names, 2, true), Claim::Begin(..)));
    }

    #[tokio::test]
    async fn it_is_known_whether_anybody_took_the_result() {
        let names = Table::default();
        let Claim::Begin(owner, waiter) = claim(&names, 1, true) else { panic!() };
        assert!(owner.is_wanted());
        let taken = owner.finish(Ok(()));
        let (nobody, outcome) = tokio::join!(taken.nobody_took_it(), waiter.outcome());
        assert!(!nobody && outcome.is_some());

        let Claim::Begin(owner, waiter) = claim(&names, 2, false) else { panic!() };
        drop(waiter);
        assert!(!owner.is_wanted());
        assert!(owner.finish(Ok(())).nobody_took_it().await);
        names.forget(&"pod", "id2");
        assert!(matches!(claim(&names, 2, true), Claim::Begin(..)));
    }
}
