//! Locks and counters whose every interleaving the models try (`scripts/models`): loom's there, elsewhere those of
//! parking_lot and the standard library. What is not modelled uses these directly.

#[cfg(not(all(test, avhdx_loom)))]
pub(crate) use self::real::*;

#[cfg(not(all(test, avhdx_loom)))]
mod real {
    pub(crate) use std::sync::atomic::{fence, AtomicU64};

    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

#[cfg(all(test, avhdx_loom))]
pub(crate) use self::modelled::*;

#[cfg(all(test, avhdx_loom))]
mod modelled {
    pub(crate) use loom::sync::atomic::{fence, AtomicU64};
    pub(crate) use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// loom's, with the interface of parking_lot.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    /// loom's, with the interface of parking_lot.
    #[derive(Debug)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }
}
