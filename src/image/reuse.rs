//! Reading space that nobody holds.
//!
//! Readers take no claim, so the space they read may get another owner under them. Whoever is about to change the content
//! of space that had an owner announces it first; a reader that sees no announcement between its lookup and the end of
//! its I/O has read what the lookup meant, and otherwise reads again.

use std::sync::atomic::Ordering;

use crate::sync::{fence, AtomicU64};

/// Counts the announcements.
#[derive(Debug)]
pub(crate) struct Reuse(AtomicU64);

impl Reuse {
    pub(crate) fn new() -> Self {
        Reuse(AtomicU64::new(0))
    }

    /// Space that had an owner is about to be given to another, or back to the file system.
    pub(crate) fn announce(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        // ORDER: the increment is seen by whoever sees anything written from now on: alone, it could be seen after that.
        fence(Ordering::SeqCst);
    }

    /// The result of `read`, which looks up places and reads them, if no space changed its owner meanwhile.
    #[inline]
    pub(crate) fn unchanged<T>(&self, read: impl FnOnce() -> T) -> Option<T> {
        let before = self.0.load(Ordering::Acquire);
        let result = read();
        // ORDER: what was read is not newer than the counter that is looked at next.
        fence(Ordering::Acquire);
        (self.0.load(Ordering::Acquire) == before).then_some(result)
    }
}
