//! Power cuts, everywhere: see [`harness`] for how and docs/testing-crash.md for how long. One module for each family of
//! operations says what must hold.

mod convert;
mod core;
#[path = "../common/damaged.rs"]
mod damaged;
#[path = "../common/shape.rs"]
mod disks;
mod harness;
#[path = "../common/moved.rs"]
mod moved;
mod relink;
mod repair;
mod shape;
mod surgery;
#[path = "../common/vhd.rs"]
mod vhd;

use std::time::Instant;

use avhdx::storage::Order;
use harness::{notices, survives, Forget, Scenario, Strength};

fn all() -> Vec<Scenario> {
    let families = [
        core::scenarios(),
        surgery::scenarios(),
        shape::scenarios(),
        convert::scenarios(),
        repair::scenarios(),
        relink::scenarios(),
    ];
    families.into_iter().flatten().collect()
}

/// Minutes, not seconds: cargo test --release --features test-support --test crash -- --ignored --nocapture
#[test]
#[ignore = "long"]
fn exhaustive() {
    let start = Instant::now();
    let strength = Strength {
        subsets: 96,
        exhaustive_up_to: 12,
        again: 59,
        threads: 4,
    };
    let total = survives(&all(), "", strength, 0);
    println!(
        "{} states, {} of them after a second cut, {} seconds",
        total.all(),
        total.twice,
        start.elapsed().as_secs()
    );
    assert!(total.all() >= 200_000);
}

/// The operations that are to notice.
fn operation(order: Order) -> &'static str {
    match order {
        Order::FreedWhenDurable => "core, merge leaf, consume",
        Order::AppliedBeforeRetired => "core, log wrap",
        Order::AppliedBeforeDenied => "core, allocating",
        Order::GrownInOneEntry => "resize, BAT",
        Order::ShrunkBeforeCleared => "resize",
        Order::ParentsNamedFirst => "migrate",
        Order::CheckpointedWhole => "core, checkpoint",
        Order::RemovedInTurn => "revert",
        Order::ChildrenBeforeRemoval | Order::FilledBeforeFold => "delete into",
        Order::ChainChildLast => "delete into an inner child",
        Order::FilledBeforeRebase => "rebase",
        Order::CompletedBeforeBitmaps => "detach",
        Order::AcceptedBeforeTaken => "core, merge leaf, copy",
        Order::CopiedBeforeRelink => "core, merge with",
        Order::TopRemovedLast => "core, merge leaf into base",
        Order::CopiedBeforeReleased => "core, merge leaf, consume",
        Order::LowestReleasedFirst => "core, merge leaf into base, consume",
        Order::UndoNamedFirst => "repair",
        _ => "core, merge",
    }
}

#[test]
fn without_any_one_order_a_power_cut_does_harm() {
    let scenarios = all();
    let orders = Order::ALL.iter().map(|&order| (operation(order), Forget::Order(order)));
    let names = ["core, checkpoint", "migrate", "repair", "revert"].map(|operation| (operation, Forget::SyncDir));
    let mut missed: Vec<_> = orders.chain(names).collect();
    if let Ok(only) = std::env::var("AVHDX_CRASH_ONLY") {
        missed.retain(|(_, forget)| format!("{forget:?}").contains(&only));
    }
    missed.retain(|(operation, forget)| !notices(&scenarios, operation, *forget));
    assert!(missed.is_empty(), "can be left out and no test notices: {missed:?}");
}
