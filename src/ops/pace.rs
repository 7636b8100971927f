//! How a long operation tells how far it is, keeps to a rate and stops when asked to.
//!
//! Bytes are *dealt with*, which is progress, and *moved*, read or copied, which counts for the rate. Stretches with
//! nothing to do are *passed*. The caller is asked whether to go on whenever bytes were moved, before any sleep and
//! between its slices, and now and then on the way through empty stretches: cancelling is prompt, however low the rate
//! and however large the disk. Nothing that others wait for may be held meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::options::{Progress, ProgressFn};

/// Longest sleep between two questions.
const SLICE: Duration = Duration::from_millis(100);
/// How far behind the rate an operation may be and still catch up; a longer pause is not made up for.
const LAG: Duration = Duration::from_secs(1);
/// Bytes without anything to do after which the caller is asked all the same.
const QUIET: u64 = 1 << 30;

/// The pace of one operation.
pub(super) struct Pace<'p> {
    /// `None`: nobody is asked and nothing slept.
    progress: Option<ProgressFn<'p>>,
    rate: u64,
    /// When the rate allows the next byte.
    free: Instant,
    now: Progress,
    /// Bytes passed since the last question.
    quiet: u64,
    what: &'static str,
    hint: &'static str,
    path: Option<PathBuf>,
}

impl<'p> Pace<'p> {
    /// Of `rate` bytes per second at most, 0 for no limit. When it is cancelled the error says "`what` was cancelled".
    pub(super) fn new(what: &'static str, hint: &'static str, rate: u64, progress: ProgressFn<'p>) -> Self {
        Pace {
            progress: Some(progress),
            rate,
            free: Instant::now(),
            now: Progress::default(),
            quiet: 0,
            what,
            hint,
            path: None,
        }
    }

    /// Names the file that the operation is about.
    pub(super) fn of(mut self, path: &Path) -> Self {
        self.path = Some(path.to_path_buf());
        self
    }

    /// The same, later on.
    pub(super) fn turn_to(&mut self, path: &Path) {
        self.path = Some(path.to_path_buf());
    }

    /// Sets the bytes to deal with, those done included.
    pub(super) fn expect(&mut self, total: u64) {
        self.now.total = total.max(self.now.done);
    }

    /// The operation, as messages name it.
    pub(super) fn what(&self) -> &'static str {
        self.what
    }

    pub(super) fn now(&self) -> Progress {
        self.now
    }

    /// From here on others wait, perhaps the caller: it is not asked, and the rate does not count.
    pub(super) fn hurry(&mut self) {
        self.progress = None;
    }

    /// `done` bytes more are dealt with, for which `moved` were read or copied.
    pub(super) fn advance(&mut self, done: u64, moved: u64) -> Result<()> {
        self.now.done += done;
        self.now.total = self.now.total.max(self.now.done);
        if moved == 0 && self.now.done < self.now.total {
            return self.pass(done);
        }
        self.ask()?;
        self.wait(moved)
    }

    /// `len` bytes more held nothing to deal with.
    pub(super) fn pass(&mut self, len: u64) -> Result<()> {
        self.quiet = self.quiet.saturating_add(len);
        if self.quiet < QUIET {
            return Ok(());
        }
        self.ask()
    }

    /// Asks whether to go on.
    pub(super) fn ask(&mut self) -> Result<()> {
        self.quiet = 0;
        let Some(progress) = &mut self.progress else {
            return Ok(());
        };
        if progress(self.now) {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Cancelled, format!("{} was cancelled", self.what)).with_hint(self.hint);
        Err(match &self.path {
            Some(path) => error.with_path(path),
            None => error,
        })
    }

    fn wait(&mut self, moved: u64) -> Result<()> {
        if self.rate == 0 || moved == 0 || self.progress.is_none() {
            return Ok(());
        }
        let now = Instant::now();
        let earliest = now.checked_sub(LAG).unwrap_or(now);
        self.free = self.free.max(earliest) + Duration::from_secs_f64(moved as f64 / self.rate as f64);
        while let Some(early) = self.free.checked_duration_since(Instant::now()) {
            if early.is_zero() {
                break;
            }
            std::thread::sleep(early.min(SLICE));
            self.ask()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn cancelled(result: Result<()>) -> bool {
        result.is_err_and(|error| {
            assert_eq!(error.to_string(), "\"/d\": the test was cancelled");
            assert_eq!(error.hint(), Some("run it again"));
            error.kind() == ErrorKind::Cancelled
        })
    }

    fn pace<'p>(rate: u64, progress: ProgressFn<'p>) -> Pace<'p> {
        Pace::new("the test", "run it again", rate, progress).of(Path::new("/d"))
    }

    #[test]
    fn told_before_it_sleeps_and_cancelled_between_slices() {
        let mut told = Vec::new();
        let mut progress = |now: Progress| {
            told.push(now.done);
            told.len() < 3
        };
        let mut pace = pace(1, &mut progress);
        pace.expect(2 * MIB);
        // Twelve days at this rate.
        assert!(cancelled(pace.advance(MIB, MIB)));
        assert_eq!(told, [MIB; 3]);
    }

    #[test]
    fn holes_do_not_count_for_the_rate_and_are_told_now_and_then() {
        let mut told = 0;
        let mut progress = |_: Progress| {
            told += 1;
            true
        };
        let mut pace = pace(1, &mut progress);
        pace.expect(u64::MAX);
        for _ in 0..64 << 10 {
            pace.advance(128 * MIB, 0).unwrap();
            pace.pass(128 * MIB).unwrap();
        }
        assert_eq!(pace.now().done, 8 << 40);
        assert_eq!(told, 16 << 10);
    }

    #[test]
    fn a_pass_over_nothing_can_be_cancelled() {
        let mut progress = |_: Progress| false;
        let mut pace = pace(0, &mut progress);
        pace.pass(QUIET - 1).unwrap();
        assert!(cancelled(pace.pass(1)));
    }

    #[test]
    fn the_end_is_told_also_when_it_is_a_hole() {
        let mut last = Progress::default();
        let mut progress = |now: Progress| {
            last = now;
            true
        };
        let mut pace = pace(0, &mut progress);
        pace.expect(2 * MIB);
        pace.advance(MIB, MIB).unwrap();
        pace.advance(MIB, 0).unwrap();
        assert_eq!((last.done, last.total), (2 * MIB, 2 * MIB));
    }

    #[test]
    fn in_a_hurry_nobody_is_asked() {
        let mut progress = |_: Progress| unreachable!("asked");
        let mut pace = pace(1, &mut progress);
        pace.hurry();
        pace.advance(MIB, MIB).unwrap();
        pace.pass(QUIET).unwrap();
    }
}
