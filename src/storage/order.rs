//! Orders between steps that no single flush stands for, so that the crash tests can take each away.

/// What comes before what: one name for each place in docs/durability.md where two durable steps must not change places
/// and no [`super::Barrier`] of its own is between them. With the feature `test-support` a test makes the code forget
/// one, and must then fail; without it the compiler removes the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Order {
    /// Commit: space is free when the entry that takes it from its owner is durable (I4).
    FreedWhenDurable,
    /// Commit: logged pages are in place before their entries may be overwritten (I6).
    AppliedBeforeRetired,
    /// Close: logged pages are in place before the header denies the log (I8).
    AppliedBeforeDenied,
    /// Grow: the size and the place of the BAT change in one entry.
    GrownInOneEntry,
    /// Shrink: the size is durable before the entries behind it are cleared.
    ShrunkBeforeCleared,
    /// Migrate: the parents have their names durably before the leaf gets its.
    ParentsNamedFirst,
    /// Checkpoint: the old leaf is durable before a child refers to it.
    CheckpointedWhole,
    /// Removal of files: each is gone durably before the next goes.
    RemovedInTurn,
    /// Delete: the children are on the layer's parent before its file goes.
    ChildrenBeforeRemoval,
    /// Delete: what a child gains is durable before it names another parent.
    FilledBeforeFold,
    /// Delete: the child in the open chain leaves the layer last, so that another run finds the layer there.
    ChainChildLast,
    /// Rebase: what the leaf gains is durable before it names the new parent.
    FilledBeforeRebase,
    /// Detach: no block is partly present when the bitmaps go.
    CompletedBeforeBitmaps,
    /// Merge: the child accepts both identities before the target takes the new one.
    AcceptedBeforeTaken,
    /// Merge: all is copied before the children are on the target.
    CopiedBeforeRelink,
    /// Merge: files between go before the top, which is the way to them.
    TopRemovedLast,
    /// Consume: the copies are durable before anything is taken from the merged layers.
    CopiedBeforeReleased,
    /// Consume: a lower layer gives up a block before an upper one that hides it does.
    LowestReleasedFirst,
    /// Repair: the undo file is durable under its name before the image changes.
    UndoNamedFirst,
}

#[cfg(feature = "test-support")]
impl Order {
    /// Every order.
    pub const ALL: &'static [Order] = &[
        Order::FreedWhenDurable,
        Order::AppliedBeforeRetired,
        Order::AppliedBeforeDenied,
        Order::GrownInOneEntry,
        Order::ShrunkBeforeCleared,
        Order::ParentsNamedFirst,
        Order::CheckpointedWhole,
        Order::RemovedInTurn,
        Order::ChildrenBeforeRemoval,
        Order::FilledBeforeFold,
        Order::ChainChildLast,
        Order::FilledBeforeRebase,
        Order::CompletedBeforeBitmaps,
        Order::AcceptedBeforeTaken,
        Order::CopiedBeforeRelink,
        Order::TopRemovedLast,
        Order::CopiedBeforeReleased,
        Order::LowestReleasedFirst,
        Order::UndoNamedFirst,
    ];
}

#[cfg(not(feature = "test-support"))]
impl Order {
    #[inline(always)]
    pub(crate) const fn is_forgotten(self) -> bool {
        false
    }
}

#[cfg(feature = "test-support")]
mod forgetting {
    use super::Order;
    use std::cell::Cell;

    thread_local! {
        static FORGOTTEN: Cell<Option<Order>> = const { Cell::new(None) };
    }

    /// Ends what [`Order::forget`] began.
    #[derive(Debug)]
    pub struct Forgotten(Option<Order>);

    impl Drop for Forgotten {
        fn drop(&mut self) {
            FORGOTTEN.set(self.0);
        }
    }

    impl Order {
        /// Makes this thread forget an order until the result is dropped.
        #[must_use]
        pub fn forget(order: Option<Order>) -> Forgotten {
            Forgotten(FORGOTTEN.replace(order))
        }

        pub(crate) fn is_forgotten(self) -> bool {
            FORGOTTEN.get() == Some(self)
        }
    }
}
