//! Who may do what to a block at this moment.
//!
//! Writes in place, and setting bitmap bits, share a block; a change of its state (allocation, discard, zero, release)
//! and read-modify-write of part of a sector exclude everybody else. A thread holds at most one claim, so claims cannot
//! deadlock. Readers need none.

use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::units::BlockIndex;

/// Blocks so many apart wait for each other without need.
const STRIPES: usize = if cfg!(avhdx_loom) { 2 } else { 256 };

#[derive(Debug)]
pub(crate) struct Claims {
    stripes: Box<[RwLock<()>]>,
}

impl Claims {
    pub(crate) fn new() -> Self {
        Claims {
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
        }
    }

    fn stripe(&self, block: BlockIndex) -> &RwLock<()> {
        &self.stripes[(block.0 % STRIPES as u64) as usize]
    }

    pub(crate) fn shared(&self, block: BlockIndex) -> RwLockReadGuard<'_, ()> {
        self.stripe(block).read()
    }

    pub(crate) fn exclusive(&self, block: BlockIndex) -> RwLockWriteGuard<'_, ()> {
        self.stripe(block).write()
    }
}
