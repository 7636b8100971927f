//! Who makes what durable.
//!
//! Any number of threads ask for durability at once; one leads, and what it does covers everything completed before it
//! began; the others wait for it and find that done.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU64, Mutex, MutexGuard};

/// Changes counted, and `S`, what only the leader touches.
#[derive(Debug)]
pub(crate) struct Turns<S> {
    completed: AtomicU64,
    durable: AtomicU64,
    state: Mutex<S>,
}

impl<S> Turns<S> {
    pub(crate) fn new(state: S) -> Self {
        Turns {
            completed: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// A change is complete: its payload is written, its metadata changed.
    pub(crate) fn complete(&self) {
        self.completed.fetch_add(1, Ordering::AcqRel);
    }

    /// Everything completed before the call is durable on return, by `lead` or by somebody else's, which may then have
    /// failed for later changes; `lead` is called at most once, by one thread at a time.
    pub(crate) fn commit<E>(&self, lead: impl FnOnce(&mut S) -> Result<(), E>) -> Result<(), E> {
        let wanted = self.completed.load(Ordering::Acquire);
        let is_done = || self.durable.load(Ordering::Acquire) >= wanted;
        if is_done() {
            return Ok(());
        }
        let mut state = self.state.lock();
        if is_done() {
            return Ok(());
        }
        self.lead(&mut state, lead)
    }

    /// Makes everything completed until now durable, whoever did it before.
    pub(crate) fn lead<E>(&self, state: &mut S, lead: impl FnOnce(&mut S) -> Result<(), E>) -> Result<(), E> {
        // ORDER: counted before `lead` collects what there is.
        let covered = self.completed.load(Ordering::Acquire);
        lead(state)?;
        self.durable.fetch_max(covered, Ordering::AcqRel);
        Ok(())
    }

    /// Nobody leads while this is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, S> {
        self.state.lock()
    }
}
