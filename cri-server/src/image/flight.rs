//! One piece of work for many waiters: whoever asks for the same key joins what runs already. The work ends with its
//! last waiter, and nobody joins work that has ended.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::ImageError;

type Work<V> = BoxFuture<'static, Result<Arc<V>, ImageError>>;

/// Work that runs, by key.
pub(super) struct Flights<K, V> {
    running: Mutex<HashMap<K, WeakShared<Work<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { running: Mutex::default() }
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

impl<K: Clone + Eq + Hash, V> Flights<K, V> {
    /// Joins the work of this key, or starts `work`. It is driven by those who wait for it: when the last of them drops
    /// the returned future, it is dropped too.
    pub(super) fn join(&self, key: K, work: impl FnOnce() -> Work<V>) -> Shared<Work<V>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, weak| weak.upgrade().is_some());
        let found = running.get(&key).and_then(WeakShared::upgrade).filter(|shared| shared.peek().is_none());
        found.unwrap_or_else(|| {
            let shared = work().shared();
            if let Some(weak) = shared.downgrade() {
                running.insert(key, weak);
            }
            shared
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn waiters_join_and_the_last_one_ends_the_work() {
        struct Ended(Arc<AtomicUsize>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let (started, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let flights = Flights::<&str, ()>::default();
        let work = || {
            started.fetch_add(1, Ordering::SeqCst);
            let guard = Ended(ended.clone());
            async move {
                let _guard = guard;
                std::future::pending::<()>().await;
                Ok(Arc::new(()))
            }
            .boxed()
        };
        let first = flights.join("a", work);
        let second = flights.join("a", work);
        assert_eq!(started.load(Ordering::SeqCst), 1);
        drop(first);
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        drop(second);
        assert_eq!(ended.load(Ordering::SeqCst), 1);
        let _third = flights.join("a", work);
        assert_eq!(started.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_has_ended_is_not_joined() {
        let flights = Flights::<&str, u32>::default();
        let first = flights.join("a", || async { Ok(Arc::new(1)) }.boxed());
        assert_eq!(*first.clone().await.unwrap(), 1);
        let second = flights.join("a", || async { Ok(Arc::new(2)) }.boxed());
        assert_eq!(*second.await.unwrap(), 2);
    }
}
