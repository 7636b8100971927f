//! One harness for every operation that writes. A story is an operation that ran on storage that records, and what must
//! hold of a state that a cut may leave. The harness makes the states, asks the story about each, and cuts the recovery
//! from some of them again.

use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use avhdx::ops::{self, CheckOptions, Severity};
use avhdx::options::OpenOptions;
use avhdx::storage::crash::{CrashFileSystem, CrashOptions};
use avhdx::storage::{Barrier, FileSystem, MemoryFileSystem, Order};
use avhdx::Error;

pub const MIB: u64 = 1 << 20;
pub const SECTOR: usize = 512;

/// An operation that ran.
pub trait Story {
    /// Where it ran.
    fn fs(&self) -> &CrashFileSystem;

    /// What is wrong with a state. `marks` were made before the cut. `thorough`: also that life goes on.
    fn verify(&self, state: &MemoryFileSystem, marks: &[u64], thorough: bool) -> Result<(), String>;

    /// What is done after a cut: opening, which replays, and finishing what was cut. It is cut in turn.
    fn recover(&self, on: &OpenOptions, marks: &[u64]) -> Result<(), String>;

    /// What counts as marked after a cut of that.
    fn marks_of_recovery(&self, marks: &[u64]) -> Vec<u64> {
        marks.to_vec()
    }
}

pub struct Scenario {
    pub operation: &'static str,
    pub name: String,
    pub run: Box<dyn Fn() -> Box<dyn Story> + Send + Sync>,
    /// How many times the usual number of random subsets to try.
    pub times: usize,
    /// Every how many states are verified thoroughly.
    pub thorough: u64,
}

impl Scenario {
    pub fn title(&self) -> String {
        format!("{}, {}", self.operation, self.name)
    }
}

/// How hard to try.
#[derive(Debug, Clone, Copy)]
pub struct Strength {
    pub subsets: usize,
    pub exhaustive_up_to: usize,
    /// From every how many states the recovery is cut as well; 0: from none.
    pub again: u64,
    pub threads: usize,
}

/// For every run of the tests. AVHDX_CRASH_SUBSETS changes the number of random subsets at each point.
pub fn usual() -> Strength {
    let subsets = std::env::var("AVHDX_CRASH_SUBSETS").ok().and_then(|n| n.parse().ok());
    Strength {
        subsets: subsets.unwrap_or(28),
        exhaustive_up_to: 7,
        again: 151,
        threads: 1,
    }
}

/// What the code is made to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget {
    Nothing,
    Barrier(Barrier),
    SyncDir,
    Order(Order),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// States after one cut.
    pub once: u64,
    /// States after a cut of a recovery.
    pub twice: u64,
}

impl Count {
    pub fn all(&self) -> u64 {
        self.once + self.twice
    }
}

/// Runs a scenario and cuts it everywhere: the number of states, or the first that is wrong.
pub fn cut(scenario: &Scenario, strength: Strength, forget: Forget) -> Result<Count, String> {
    let forgotten = match forget {
        Forget::Order(order) => Some(order),
        _ => None,
    };
    let crash = CrashOptions {
        ignore: match forget {
            Forget::Barrier(barrier) => Some(barrier),
            _ => None,
        },
        ignore_sync_dir: forget == Forget::SyncDir,
        subsets_per_point: strength.subsets * scenario.times,
        exhaustive_up_to: strength.exhaustive_up_to,
        garble_below: 192 << 10,
        ..CrashOptions::default()
    };
    // What is forgotten is forgotten by the operation; also by the recovery, which is no operation of its own.
    let _forgotten = Order::forget(forgotten);
    let story = match forgotten {
        None => (scenario.run)(),
        // Out of order it may not even get to its end.
        Some(_) => catch_unwind(AssertUnwindSafe(|| (scenario.run)())).map_err(|_| "the operation failed")?,
    };
    let (mut count, mut wrong) = (Count::default(), None);
    let mut seen = 0u64;
    let stats = story.fs().enumerate(&crash, &mut |state, point| {
        seen += 1;
        let at = |why: String| format!("{why}\n  {} (seed {})", point.description, crash.seed);
        let verdict = match strength.again != 0 && seen % strength.again == 0 {
            true => cut_again(&*story, &state, &point.marks, &crash).map(|states| count.twice += states),
            false => Ok(()),
        };
        let verdict = verdict.and_then(|()| story.verify(&state, &point.marks, seen % scenario.thorough == 0));
        match verdict.map_err(at) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => {
                wrong = Some(why);
                ControlFlow::Break(())
            }
        }
    });
    count.once = stats.states;
    wrong.map_or(Ok(count), Err)
}

/// Recovers from `state` and cuts that. Whatever the second cut leaves must be as good as what the first left.
fn cut_again(story: &dyn Story, state: &MemoryFileSystem, marks: &[u64], crash: &CrashOptions) -> Result<u64, String> {
    let fs = CrashFileSystem::new(state);
    let mut on = OpenOptions::new().on(Arc::new(fs.clone()));
    on.lock = false;
    story.recover(&on, marks).map_err(|why| format!("recovery: {why}"))?;
    let crash = CrashOptions {
        subsets_per_point: 1,
        exhaustive_up_to: crash.exhaustive_up_to.min(3),
        ..crash.clone()
    };
    let marks = story.marks_of_recovery(marks);
    let mut wrong = None;
    let stats = fs.enumerate(&crash, &mut |state, point| match story.verify(&state, &marks, false) {
        Ok(()) => ControlFlow::Continue(()),
        Err(why) => {
            wrong = Some(format!("cut in the recovery: {why}\n  {}", point.description));
            ControlFlow::Break(())
        }
    });
    wrong.map_or(Ok(stats.states), Err)
}

/// Cuts every scenario of an operation. AVHDX_CRASH_ONLY chooses by name.
pub fn survives(scenarios: &[Scenario], operation: &str, strength: Strength, at_least: u64) -> Count {
    let only = std::env::var("AVHDX_CRASH_ONLY").ok();
    let is_wanted = |s: &&Scenario| {
        let title = s.title();
        title.starts_with(operation) && only.as_ref().is_none_or(|only| title.contains(only))
    };
    let wanted: Vec<&Scenario> = scenarios.iter().filter(is_wanted).collect();
    let (next, total) = (AtomicUsize::new(0), Mutex::new(Count::default()));
    std::thread::scope(|scope| {
        for _ in 0..strength.threads {
            scope.spawn(|| {
                while let Some(scenario) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = scenario.title();
                    let count = cut(scenario, strength, Forget::Nothing).unwrap_or_else(|why| panic!("{name}: {why}"));
                    println!("{:7} states, {:7} after a second cut: {name}", count.once, count.twice);
                    let mut total = total.lock().unwrap();
                    total.once += count.once;
                    total.twice += count.twice;
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    if only.is_none() && strength.subsets >= usual().subsets {
        assert!(total.once >= at_least, "only {} states of {operation}", total.once);
    }
    total
}

/// Whether one of the scenarios notices what is forgotten.
pub fn notices(scenarios: &[Scenario], operation: &str, forget: Forget) -> bool {
    let strength = Strength { again: 0, ..usual() };
    let mut wanted = scenarios.iter().filter(|s| s.title().starts_with(operation));
    let caught = wanted.find_map(|s| cut(s, strength, forget).err().map(|why| (s.title(), why)));
    if let Some((name, why)) = &caught {
        println!(
            "{forget:?} is needed, says {name}: {}",
            why.lines().next().unwrap_or("")
        );
    }
    caught.is_some()
}

pub fn is_needed(scenarios: &[Scenario], operation: &str, forget: Forget) {
    assert!(
        notices(scenarios, operation, forget),
        "{operation}: {forget:?} can be left out and no test notices"
    );
}

pub fn path(name: &str) -> PathBuf {
    Path::new("/vm").join(name)
}

pub fn options(fs: &(impl FileSystem + Clone + 'static)) -> OpenOptions {
    OpenOptions::new().on(Arc::new(fs.clone()))
}

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_add((i / SECTOR) as u8) | 1).collect()
}

/// Not a file that was still without its name.
pub fn is_whole(file: &Path) -> bool {
    !file.to_string_lossy().ends_with(".tmp")
}

pub fn fail(what: impl std::fmt::Debug, e: Error) -> String {
    format!("{what:?}: {}", e.chain_text())
}

/// The first broken rule of a file.
pub fn check(file: &Path, open: &OpenOptions) -> Result<(), String> {
    let mut open = open.clone();
    open.lock = false;
    let mut first = None;
    ops::check(file, &open, &CheckOptions::default(), &mut |finding| {
        if finding.severity == Severity::Error && first.is_none() {
            first = Some(format!("check {file:?}: {}", finding.defect));
        }
    })
    .map_err(|e| fail(file, e))?;
    first.map_or(Ok(()), Err)
}

/// The number in the last mark of a kind; marks are a kind in the upper half and a number in the lower.
pub fn last_mark(marks: &[u64], kind: u64) -> usize {
    let of_kind = marks.iter().rev().find(|m| *m & !0xFFFF_FFFF == kind);
    of_kind.map_or(0, |m| (m & 0xFFFF_FFFF) as usize)
}
